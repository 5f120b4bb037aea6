// All kernels for one instruction set, and their table. The including file names the variant (FD_VARIANT) and sets the
// compiler's target, after the headers that variants share: nothing in them is compiled for one target alone.
#include "conv3x3_impl.h"
#include "diffuse_impl.h"
#include "dropout_impl.h"
#include "group_norm_act_impl.h"
#include "instructions_impl.h"
#include "kernels.h"
#include "losses_impl.h"
#include "step_impl.h"

#define FD_STRING_OF(TOKEN) #TOKEN
#define FD_STRING(MACRO) FD_STRING_OF(MACRO)

namespace fastdiff::FD_VARIANT {

const Kernels table = {
    .name = FD_STRING(FD_VARIANT),
    .diffuse = run_diffuse,
    .step = run_step,
    .dropout = run_dropout,
    .losses = run_losses,
    .conv3x3_pack = run_conv3x3_pack,
    .conv3x3_weight_grad = run_conv3x3_weight_grad,
    .group_norm_act = run_group_norm_act,
    .group_norm_act_backward = run_group_norm_act_backward,
    .instruction = run_instruction_unit,
};

}  // namespace fastdiff::FD_VARIANT
