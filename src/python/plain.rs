//! Between Python objects and plain bytes.
//!
//! Plain are the exact types below and containers of them, as long as each mutable container stands
//! in one place only: two references to the same list must not come back as two lists.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use super::calls::Arguments;
use crate::transport::Small;
use crate::transport::plain::{DEPTH_MAX, STRING_MAX, Token, read, write};

/// Most mutable containers in one value. More are the serializer's, which looks them up quicker.
const MUTABLE_MAX: usize = 16;

struct Encoder<'a> {
    out: &'a mut Small,
    /// Where the mutable containers are that were met so far.
    mutable: [usize; MUTABLE_MAX],
    met: usize,
}

/// Appends a call, or gives up: then what was appended is of no use.
pub fn encode_call(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>, out: &mut Small) -> bool {
    let mut encoder = Encoder { out, mutable: [0; MUTABLE_MAX], met: 0 };
    encoder.tuple(args, 0) && kwargs.is_none_or(|kwargs| encoder.dict(kwargs, 0))
}

/// The same for a call with one argument.
pub fn encode_item(item: &Bound<'_, PyAny>, out: &mut Small) -> bool {
    write(Token::Tuple(1), out);
    encode(item, out)
}

/// Appends a value, or gives up.
pub fn encode(value: &Bound<'_, PyAny>, out: &mut Small) -> bool {
    Encoder { out, mutable: [0; MUTABLE_MAX], met: 0 }.value(value, 0)
}

impl Encoder<'_> {
    fn value(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> bool {
        if let Ok(value) = value.cast_exact::<PyInt>() {
            let Ok(value) = value.extract::<i64>() else { return false };
            write(Token::Int(value), self.out);
        } else if let Ok(value) = value.cast_exact::<PyString>() {
            // Not all strings of Python are text.
            let Ok(value) = value.to_str() else { return false };
            write(Token::Str(value), self.out);
            return value.len() <= STRING_MAX;
        } else if let Ok(value) = value.cast_exact::<PyFloat>() {
            write(Token::Float(value.value()), self.out);
        } else if value.is_none() {
            write(Token::None, self.out);
        } else if let Ok(value) = value.cast_exact::<PyBool>() {
            write(Token::Bool(value.is_true()), self.out);
        } else if let Ok(value) = value.cast_exact::<PyTuple>() {
            return self.tuple(value, depth);
        } else if let Ok(value) = value.cast_exact::<PyList>() {
            return self.list(value, depth);
        } else if let Ok(value) = value.cast_exact::<PyDict>() {
            return self.dict(value, depth);
        } else if let Ok(value) = value.cast_exact::<PyBytes>() {
            write(Token::Bytes(value.as_bytes()), self.out);
            return value.as_bytes().len() <= STRING_MAX;
        } else {
            return false;
        }
        true
    }

    fn tuple(&mut self, tuple: &Bound<'_, PyTuple>, depth: usize) -> bool {
        write(Token::Tuple(tuple.len()), self.out);
        depth < DEPTH_MAX && tuple.iter_borrowed().all(|part| self.value(&part, depth + 1))
    }

    fn list(&mut self, list: &Bound<'_, PyList>, depth: usize) -> bool {
        write(Token::List(list.len()), self.out);
        depth < DEPTH_MAX && self.meet(list) && list.iter().all(|part| self.value(&part, depth + 1))
    }

    fn dict(&mut self, dict: &Bound<'_, PyDict>, depth: usize) -> bool {
        write(Token::Dict(dict.len()), self.out);
        depth < DEPTH_MAX
            && self.meet(dict)
            && dict.iter().all(|(key, value)| self.value(&key, depth + 1) && self.value(&value, depth + 1))
    }

    /// Whether this one was not met before.
    fn meet(&mut self, container: &Bound<'_, PyAny>) -> bool {
        let place = container.as_ptr() as usize;
        if self.met == MUTABLE_MAX || self.mutable[..self.met].contains(&place) {
            return false;
        }
        self.mutable[self.met] = place;
        self.met += 1;
        true
    }
}

/// What a plain value is in Python. Bytes that a sound peer would not have written are an error.
pub fn decode<'py>(py: Python<'py>, mut bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let value = part(py, &mut bytes, 0)?;
    end(bytes)?;
    Ok(value)
}

/// The same for Python. With `call`, what it holds is a call: arguments and keyword arguments.
#[pyfunction]
pub fn decode_plain<'py>(py: Python<'py>, bytes: &[u8], call: bool) -> PyResult<Bound<'py, PyAny>> {
    if !call {
        return decode(py, bytes);
    }
    let (args, kwargs) = decode_arguments(py, bytes)?.into_parts(py)?;
    Ok((args, kwargs.unwrap_or_else(|| PyDict::new(py))).into_pyobject(py)?.into_any())
}

/// Takes the arguments of one call of several off the front.
pub fn decode_args<'py>(py: Python<'py>, bytes: &mut &[u8]) -> PyResult<Arguments<'py>> {
    Ok(match token(bytes)? {
        Token::Tuple(1) => Arguments::One(part(py, bytes, 1)?),
        token => Arguments::All(value(py, token, bytes, 0)?.cast_into()?, None),
    })
}

/// All that comes of the arguments of one call.
pub fn decode_arguments<'py>(py: Python<'py>, mut bytes: &[u8]) -> PyResult<Arguments<'py>> {
    Ok(match decode_args(py, &mut bytes)? {
        args if bytes.is_empty() => args,
        args => {
            let kwargs = part(py, &mut bytes, 0)?.cast_into()?;
            end(bytes)?;
            Arguments::All(args.into_parts(py)?.0, Some(kwargs))
        }
    })
}

fn end(bytes: &[u8]) -> PyResult<()> {
    if bytes.is_empty() { Ok(()) } else { Err(PyValueError::new_err("a plain value goes on after its end")) }
}

fn token<'a>(bytes: &mut &'a [u8]) -> PyResult<Token<'a>> {
    read(bytes).map_err(|corrupt| PyValueError::new_err(corrupt.0))
}

fn part<'py>(py: Python<'py>, bytes: &mut &[u8], depth: usize) -> PyResult<Bound<'py, PyAny>> {
    let token = token(bytes)?;
    value(py, token, bytes, depth)
}

/// What begins with this token.
fn value<'py>(
    py: Python<'py>,
    token: Token<'_>,
    bytes: &mut &[u8],
    depth: usize,
) -> PyResult<Bound<'py, PyAny>> {
    if depth > DEPTH_MAX {
        return Err(PyValueError::new_err("a plain value is nested too deep"));
    }
    Ok(match token {
        Token::None => py.None().into_bound(py),
        Token::Bool(value) => PyBool::new(py, value).to_owned().into_any(),
        Token::Int(value) => value.into_pyobject(py)?.into_any(),
        Token::Float(value) => PyFloat::new(py, value).into_any(),
        Token::Str(value) => PyString::new(py, value).into_any(),
        Token::Bytes(value) => PyBytes::new(py, value).into_any(),
        Token::Tuple(1) => {
            // That of most calls.
            let only = part(py, bytes, depth + 1)?;
            PyTuple::new(py, [only])?.into_any()
        }
        Token::Tuple(len) => PyTuple::new(py, parts(py, bytes, len, depth)?)?.into_any(),
        Token::List(len) => PyList::new(py, parts(py, bytes, len, depth)?)?.into_any(),
        Token::Dict(len) => {
            let dict = PyDict::new(py);
            for _ in 0..len {
                let key = part(py, bytes, depth + 1)?;
                dict.set_item(key, part(py, bytes, depth + 1)?)?;
            }
            dict.into_any()
        }
    })
}

fn parts<'py>(
    py: Python<'py>,
    bytes: &mut &[u8],
    len: usize,
    depth: usize,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    (0..len).map(|_| part(py, bytes, depth + 1)).collect()
}
