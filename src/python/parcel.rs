//! Parcels as Python has them: packed from a pickled stream and its buffers, and unpacked into views.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyMemoryError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyMemoryView, PySlice};

use super::buffers::{Memory, Views};
use crate::supervisor::Batch;
use crate::transport::{Small, parcel, pool};

/// A parcel to be sent.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Parcel(pub Arc<parcel::Parcel>);

#[pymethods]
impl Parcel {
    /// Packs the parts of a stream, and buffers: each an object whose bytes are in one piece. One that is
    /// `given` goes to one receiver only.
    #[new]
    fn new(
        py: Python<'_>,
        stream: &Bound<'_, PyList>,
        buffers: &Bound<'_, PyList>,
        given: bool,
    ) -> PyResult<Self> {
        let (stream, buffers) = (Views::of(stream)?, Views::of(buffers)?);
        let (stream, buffers) = (stream.bytes(), buffers.bytes());
        let packed = py.detach(|| parcel::Parcel::pack(&stream, &buffers, given));
        Ok(Self(Arc::new(packed?)))
    }

    /// Whether just this was packed.
    fn holds(
        &self,
        py: Python<'_>,
        stream: &Bound<'_, PyList>,
        buffers: &Bound<'_, PyList>,
    ) -> PyResult<bool> {
        let (stream, buffers) = (Views::of(stream)?, Views::of(buffers)?);
        let (stream, buffers) = (stream.bytes(), buffers.bytes());
        Ok(py.detach(|| self.0.holds(&stream, &buffers))?)
    }

    /// How many bytes there are.
    #[getter]
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// What goes to a worker: bytes, or a parcel.
pub fn packed(object: &Bound<'_, PyAny>) -> PyResult<Batch> {
    if let Ok(parcel) = object.cast::<Parcel>() {
        return Ok(Batch::packed(Arc::clone(&parcel.get().0)));
    }
    Ok(Batch::one(Small::from_slice(object.cast::<PyBytes>()?.as_bytes()), false))
}

/// A parcel that has arrived. It can be opened once.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Arrived(Mutex<Option<parcel::Arrived>>);

impl Arrived {
    /// Takes it over.
    pub fn new(arrived: parcel::Arrived) -> Self {
        Self(Mutex::new(Some(arrived)))
    }
}

#[pymethods]
impl Arrived {
    /// The stream and the buffers, all in one memory that lives as long as one of them is in use.
    fn open<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Vec<Bound<'py, PyAny>>)> {
        let arrived = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let arrived = arrived.ok_or_else(|| PyRuntimeError::new_err("the parcel was opened before"))?;
        let (layout, memory) = py.detach(|| arrived.unpack()).map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => PyMemoryError::new_err("no memory for what was sent"),
            _ => PyErr::from(error),
        })?;
        let memory = Bound::new(py, Memory::new(memory))?;
        let all = PyMemoryView::from(&memory)?;
        // `PySlice::new` of PyO3 0.30 loses a reference to each of its numbers.
        let slice = py.get_type::<PySlice>();
        let part = |part: &std::ops::Range<usize>| all.get_item(slice.call1((part.start, part.end))?);
        let stream = part(&layout.stream)?;
        Ok((stream, layout.buffers.iter().map(part).collect::<PyResult<_>>()?))
    }
}

/// Keeps at most so many bytes of used files, to use them again.
#[pyfunction]
pub fn keep_at_most(bytes: usize) {
    pool::set_limit(bytes);
}

/// Lets go of all used files.
#[pyfunction]
pub fn keep_nothing() {
    pool::clear();
}
