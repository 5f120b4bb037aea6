// The Python module. Importing it loads this library, whose static initialisers register the kernels with PyTorch.
#include <Python.h>

#include <cstdint>
#include <exception>
#include <string>

#include "chunks.h"
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

// What a server calls between evaluations: the address of so many `Chunk`s. The caller answers for what they hold.
template <void (*FUNCTION)(const fastdiff::Chunk*, int64_t)>
static PyObject* over_chunks(PyObject*, PyObject* const* values, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "an address and a number of chunks are needed");
    return nullptr;
  }
  const long long address = PyLong_AsLongLong(values[0]), chunks = PyLong_AsLongLong(values[1]);
  if (PyErr_Occurred()) return nullptr;
  std::string complaint;
  Py_BEGIN_ALLOW_THREADS
  try {
    FUNCTION(reinterpret_cast<const fastdiff::Chunk*>(static_cast<intptr_t>(address)), chunks);
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
    {"chunk_inputs", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(over_chunks<fastdiff::chunk_inputs>)),
     METH_FASTCALL, "Write what the network is given for chunks of samples (csrc/cpu/chunks.h): address, count."},
    {"chunk_steps", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(over_chunks<fastdiff::chunk_steps>)),
     METH_FASTCALL, "Execute the row of each of some chunks of samples: address, count."},
    {"cpu_isa", cpu_isa, METH_NOARGS,
     "The instruction set of the kernels in use: generic, avx2, avx512, avx512bf16 or avx512amx."},
    {"step_dense", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(step_dense)), METH_FASTCALL,
     "A row without noise, over float32 tensors of one dense layout. Addresses of x, the model's output, out, "
     "pred_out, base and history (0 where absent), the history's depth, the number of elements, the rows' address, "
     "the row."},
    {nullptr, nullptr, 0, nullptr},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "fastdiff's compiled kernels.", -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
