// The Python module. Importing it loads this library, whose static initialisers register the kernels with PyTorch.
#include <Python.h>

#include <cstdint>
#include <exception>
#include <string>

#include "kernels.h"
#include "row.h"

static PyObject* cpu_isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(fastdiff::kernels().name);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

// The drop-in schedulers' way past the dispatcher, whose boxing takes as long as the row of a small image. The caller
// answers for the addresses.
static PyObject* step_dense(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (count != 10) {
    PyErr_SetString(PyExc_TypeError, "step_dense takes 10 numbers");
    return nullptr;
  }
  long long number[10];
  for (int i = 0; i < 10; ++i) number[i] = PyLong_AsLongLong(values[i]);
  if (PyErr_Occurred()) return nullptr;
  const auto place = [&](int i) { return reinterpret_cast<float*>(static_cast<intptr_t>(number[i])); };
  const fastdiff::DenseStep call = {
      place(0),  place(1), place(2), place(3), place(4), place(5), static_cast<int>(number[6]),
      number[7], place(8), number[9]};
  std::string complaint;
  Py_BEGIN_ALLOW_THREADS
  try {
    fastdiff::step_dense(call);
  } catch (const std::exception& error) {
    complaint = error.what();
  }
  Py_END_ALLOW_THREADS
  if (!complaint.empty()) {
    PyErr_SetString(PyExc_RuntimeError, complaint.c_str());
    return nullptr;
  }
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS,
     "The instruction set of the kernels in use: generic, avx2, avx512 or avx512bf16."},
    {"step_dense", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(step_dense)), METH_FASTCALL,
     "A row without noise, over float32 tensors of one dense layout. Addresses of x, the model's output, out, "
     "pred_out, base and history (0 where absent), the history's depth, the number of elements, the rows' address, "
     "the row."},
    {nullptr, nullptr, 0, nullptr},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "fastdiff's compiled kernels.", -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
