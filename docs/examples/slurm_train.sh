#!/bin/bash
# Training under Slurm, a process to a GPU: sbatch slurm_train.sh, beside a train.yaml (fastdiff train --print-config).
#SBATCH --job-name=fastdiff
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
# Two minutes before the time is over every process is asked to end; it finishes its step and saves.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# All GPUs of a node are visible to each of its processes, which takes that of its LOCAL_RANK.
srun bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec fastdiff train --config train.yaml --out run'
code=$?

# Asked to end, and saved: the same job goes on from there. What failed by itself stays for someone to look at.
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
