//! Python's buffers: the bytes of other objects, and memory that other objects use.
//!
//! With `calls` the one file outside of `sys` with unsafe code: a buffer is made of the interpreter's own
//! structures, which only this room may name.

use std::os::raw::{c_int, c_void};

use pyo3::buffer::PyBuffer;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::transport::parcel;

/// The bytes of some objects, which cannot be resized or freed meanwhile.
pub struct Views(Vec<PyBuffer<u8>>);

impl Views {
    /// Of objects that are bytes in one piece.
    pub fn of(objects: &Bound<'_, PyList>) -> PyResult<Self> {
        Ok(Self(objects.iter().map(|object| PyBuffer::get(&object)).collect::<PyResult<_>>()?))
    }

    /// The bytes of each. That another thread may write to them is the affair of who shares them: they
    /// are only copied and compared.
    pub fn bytes(&self) -> Vec<&[u8]> {
        self.0
            .iter()
            .map(|buffer| match buffer.len_bytes() {
                0 => &[][..],
                // SAFETY: the view keeps so many bytes there until it is dropped; `PyBuffer` has checked
                // that they are of one byte each, and callers pass contiguous ones.
                len => unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), len) },
            })
            .collect()
    }
}

/// The memory of a parcel, for as long as an object uses it.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Memory {
    address: usize,
    memory: parcel::Memory,
}

impl Memory {
    /// Takes it over.
    pub fn new(mut memory: parcel::Memory) -> Self {
        Self { address: memory.address() as usize, memory }
    }
}

#[pymethods]
impl Memory {
    /// Writable: nobody else sees what is written.
    unsafe fn __getbuffer__(slf: &Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let len = ffi::Py_ssize_t::try_from(this.memory.len())?;
        // SAFETY: the interpreter passes a view to be filled. It will hold a reference to this object,
        // which keeps the memory where it is.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), this.address as *mut c_void, len, 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
