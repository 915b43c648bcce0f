//! What a call depends on beside its arguments, and whether any of it has changed.
//!
//! Looked at before every call, so it compares identities where that is enough. All that it holds is
//! immutable or compared whole; Python decides what has to be watched.

use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::sys;

/// One thing that a function refers to, where it was found, and what it was.
#[derive(Debug)]
enum Watch {
    /// The value of a key; none if there was none.
    Item { dict: Py<PyDict>, key: Py<PyAny>, value: Option<Py<PyAny>> },
    /// The value of an attribute; none if there was none.
    Attribute { object: Py<PyAny>, name: Py<PyAny>, value: Option<Py<PyAny>> },
    /// How many keys there are.
    Size { dict: Py<PyDict>, len: usize },
    /// All keys and values, in their order.
    Dict { dict: Py<PyDict>, entries: Vec<(Py<PyAny>, Py<PyAny>)> },
    /// All that is in a list.
    List { list: Py<PyList>, entries: Vec<Py<PyAny>> },
}

/// All that a function refers to.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Captures {
    watches: Vec<Watch>,
}

#[pymethods]
impl Captures {
    /// From `(dict, key)` pairs, `(object, name)` pairs, dicts whose size tells, and dicts and lists of
    /// which all tells, as they are now.
    #[new]
    fn new(
        items: Vec<(Bound<'_, PyDict>, Bound<'_, PyAny>)>,
        attributes: Vec<(Bound<'_, PyAny>, Bound<'_, PyAny>)>,
        sizes: Vec<Bound<'_, PyDict>>,
        dicts: Vec<Bound<'_, PyDict>>,
        lists: Vec<Bound<'_, PyList>>,
    ) -> PyResult<Self> {
        let mut watches = Vec::new();
        for (dict, key) in items {
            let value = dict.get_item(&key)?.map(Bound::unbind);
            watches.push(Watch::Item { dict: dict.unbind(), key: key.unbind(), value });
        }
        for (object, name) in attributes {
            let value = attribute(&object, &name)?.map(Bound::unbind);
            watches.push(Watch::Attribute { object: object.unbind(), name: name.unbind(), value });
        }
        for dict in sizes {
            watches.push(Watch::Size { len: dict.len(), dict: dict.unbind() });
        }
        for dict in dicts {
            let entries = dict.iter().map(|(key, value)| (key.unbind(), value.unbind())).collect();
            watches.push(Watch::Dict { entries, dict: dict.unbind() });
        }
        for list in lists {
            let entries = list.iter().map(Bound::unbind).collect();
            watches.push(Watch::List { entries, list: list.unbind() });
        }
        Ok(Self { watches })
    }

    /// Whether all of it is what it was.
    pub fn is_current(&self, py: Python<'_>) -> PyResult<bool> {
        for watch in &self.watches {
            let same = match watch {
                Watch::Item { dict, key, value } => {
                    is_same(dict.bind(py).get_item(key.bind(py))?.as_ref(), value.as_ref())
                }
                Watch::Attribute { object, name, value } => {
                    is_same(attribute(object.bind(py), name.bind(py))?.as_ref(), value.as_ref())
                }
                Watch::Size { dict, len } => dict.bind(py).len() == *len,
                Watch::Dict { dict, entries } => {
                    let dict = dict.bind(py);
                    dict.len() == entries.len()
                        && dict
                            .iter()
                            .zip(entries)
                            .all(|((key, value), (then, was))| key.is(then) && value.is(was))
                }
                Watch::List { list, entries } => {
                    let list = list.bind(py);
                    list.len() == entries.len() && list.iter().zip(entries).all(|(now, then)| now.is(then))
                }
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for watch in &self.watches {
            match watch {
                Watch::Item { dict, key, value } => {
                    visit.call(dict)?;
                    visit.call(key)?;
                    visit.call(value)?;
                }
                Watch::Attribute { object, name, value } => {
                    visit.call(object)?;
                    visit.call(name)?;
                    visit.call(value)?;
                }
                Watch::Size { dict, .. } => visit.call(dict)?,
                Watch::Dict { dict, entries } => {
                    visit.call(dict)?;
                    for (key, value) in entries {
                        visit.call(key)?;
                        visit.call(value)?;
                    }
                }
                Watch::List { list, entries } => {
                    visit.call(list)?;
                    for entry in entries {
                        visit.call(entry)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// An empty cell raises `ValueError`, and what is not there `AttributeError`.
fn attribute<'py>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    match object.getattr(name.cast::<pyo3::types::PyString>()?) {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.is_instance_of::<PyValueError>(object.py())
                || error.is_instance_of::<pyo3::exceptions::PyAttributeError>(object.py()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn is_same(now: Option<&Bound<'_, PyAny>>, then: Option<&Py<PyAny>>) -> bool {
    match (now, then) {
        (Some(now), Some(then)) => now.is(then),
        (None, None) => true,
        _ => false,
    }
}

/// The surroundings that workers follow: working directory, environment, `sys.path` and the key of
/// `multiprocessing`. And that nobody has taken away all modules.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Surroundings {
    os: Py<PyAny>,
    sys: Py<PyAny>,
    modules: Py<PyDict>,
    directory: Option<Vec<u8>>,
    environment: Py<PyDict>,
    path: Py<PyList>,
    key: Option<Py<PyAny>>,
}

fn environment_of<'py>(os: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = os.py();
    let environ = os.getattr(intern!(py, "environ"))?;
    // The bytes that it keeps: to decode forty variables takes longer than a whole call.
    environ.getattr(intern!(py, "_data")).or(Ok(environ))
}

fn key_of<'py>(modules: &Bound<'py, PyDict>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = modules.py();
    // Never imported for this: that takes longer than to start a worker.
    let Some(module) = modules.get_item(intern!(py, "multiprocessing.process"))? else { return Ok(None) };
    let process = module.call_method0(intern!(py, "current_process"))?;
    Ok(Some(process.getattr(intern!(py, "authkey"))?))
}

#[pymethods]
impl Surroundings {
    /// As they are now.
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let os = py.import("os")?.into_any();
        let module = py.import("sys")?;
        let modules = module.getattr("modules")?.cast_into::<PyDict>()?;
        let dict = py.get_type::<PyDict>();
        let path = module.getattr("path")?;
        Ok(Self {
            directory: sys::current_directory(),
            environment: dict.call1((environment_of(&os)?,))?.cast_into::<PyDict>()?.unbind(),
            path: py.get_type::<PyList>().call1((path,))?.cast_into::<PyList>()?.unbind(),
            key: key_of(&modules)?.map(Bound::unbind),
            modules: modules.unbind(),
            os: os.unbind(),
            sys: module.into_any().unbind(),
        })
    }

    /// Whether they still are.
    pub fn is_current(&self, py: Python<'_>) -> PyResult<bool> {
        let path = self.sys.bind(py).getattr(intern!(py, "path"))?;
        Ok(environment_of(self.os.bind(py))?.eq(&self.environment)?
            && path.eq(&self.path)?
            && self.modules.bind(py).get_item(intern!(py, "sys"))?.is_some_and(|found| found.is(&self.sys))
            && self.is_key_current(py)?
            && sys::is_current_directory(self.directory.as_deref()))
    }

    /// The working directory as bytes; None if it is gone.
    #[getter]
    fn directory(&self) -> Option<&[u8]> {
        self.directory.as_deref()
    }

    /// The environment, a dict of bytes.
    #[getter]
    fn environment(&self, py: Python<'_>) -> Py<PyDict> {
        self.environment.clone_ref(py)
    }

    /// The entries of `sys.path`.
    #[getter]
    fn path(&self, py: Python<'_>) -> Py<PyList> {
        self.path.clone_ref(py)
    }

    /// The key of `multiprocessing`; None if that is not imported.
    #[getter]
    fn key(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.key.as_ref().map(|key| key.clone_ref(py))
    }
}

impl Surroundings {
    fn is_key_current(&self, py: Python<'_>) -> PyResult<bool> {
        match (key_of(self.modules.bind(py))?, &self.key) {
            (Some(now), Some(then)) => now.eq(then),
            (None, None) => Ok(true),
            _ => Ok(false),
        }
    }
}
