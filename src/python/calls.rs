//! Calls of functions with arguments that have arrived.
//!
//! Unsafe code as in `buffers`: the stable interface of Python 3.11 has one way to call with an argument
//! that is not in a tuple yet, and it takes the interpreter's own pointers.

use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// The arguments of a call.
pub enum Arguments<'py> {
    /// One by position, as most calls have.
    One(Bound<'py, PyAny>),
    /// Any, by position and by name.
    All(Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>),
}

impl<'py> Arguments<'py> {
    /// Calls the function with them.
    pub fn call(&self, function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            // A tuple would be made, taken apart, and thrown away.
            Self::One(argument) => {
                let end = ptr::null_mut::<ffi::PyObject>();
                // SAFETY: both live longer than the call, and the end is marked. What comes back is ours, or
                // null with an exception set.
                unsafe {
                    let value = ffi::PyObject_CallFunctionObjArgs(function.as_ptr(), argument.as_ptr(), end);
                    Bound::from_owned_ptr_or_err(function.py(), value)
                }
            }
            Self::All(args, kwargs) => function.call(args, kwargs.as_ref()),
        }
    }

    /// The same as a tuple and a dictionary.
    pub fn into_parts(self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>)> {
        match self {
            Self::One(argument) => Ok((PyTuple::new(py, [argument])?, None)),
            Self::All(args, kwargs) => Ok((args, kwargs)),
        }
    }
}
