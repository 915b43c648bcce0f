//! Plain values as bytes: numbers, strings and containers of them, without a serializer.
//!
//! A value is a tag and what belongs to it; a container is its tag, its length and its parts. Pure:
//! what a token becomes in Python is the affair of `python::plain`.

use super::record::{Corrupt, Small};

/// Deepest nesting. What is deeper goes through the serializer.
pub const DEPTH_MAX: usize = 16;
/// Longest string. What is longer is worth a way without copies.
pub const STRING_MAX: usize = 1 << 20;

/// One part of a plain value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// Nothing.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Str(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// The parts of a tuple follow, so many.
    Tuple(usize),
    /// The parts of a list follow.
    List(usize),
    /// The keys and values of a dict follow, so many of each.
    Dict(usize),
}

const NONE: u8 = 1;
const FALSE: u8 = 2;
const TRUE: u8 = 3;
const INT: u8 = 4;
const FLOAT: u8 = 5;
const STR: u8 = 6;
const BYTES: u8 = 7;
const TUPLE: u8 = 8;
const LIST: u8 = 9;
const DICT: u8 = 10;
const SMALL: u8 = 11;
const ONE: u8 = 12;

/// Appends one part.
pub fn write(token: Token<'_>, out: &mut Small) {
    match token {
        Token::None => out.push(NONE),
        Token::Bool(value) => out.push(if value { TRUE } else { FALSE }),
        Token::Int(value) => match i32::try_from(value) {
            // Most are small, and each byte has to come from another core.
            Ok(value) => {
                let mut bytes = [SMALL; 5];
                bytes[1..].copy_from_slice(&value.to_le_bytes());
                out.extend_from_slice(&bytes);
            }
            Err(_) => tagged(INT, value.to_le_bytes(), out),
        },
        Token::Float(value) => tagged(FLOAT, value.to_le_bytes(), out),
        Token::Str(value) => string(STR, value.as_bytes(), out),
        Token::Bytes(value) => string(BYTES, value, out),
        // Most calls have one argument.
        Token::Tuple(1) => out.push(ONE),
        Token::Tuple(len) => sized(TUPLE, len, out),
        Token::List(len) => sized(LIST, len, out),
        Token::Dict(len) => sized(DICT, len, out),
    }
}

fn tagged(tag: u8, word: [u8; 8], out: &mut Small) {
    let mut bytes = [tag; 9];
    bytes[1..].copy_from_slice(&word);
    out.extend_from_slice(&bytes);
}

fn sized(tag: u8, len: usize, out: &mut Small) {
    tagged(tag, (len as u64).to_le_bytes(), out);
}

fn string(tag: u8, bytes: &[u8], out: &mut Small) {
    sized(tag, bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Takes one part off the front.
pub fn read<'a>(bytes: &mut &'a [u8]) -> Result<Token<'a>, Corrupt> {
    let tag = take(bytes, 1)?[0];
    Ok(match tag {
        NONE => Token::None,
        FALSE => Token::Bool(false),
        TRUE => Token::Bool(true),
        INT => Token::Int(i64::from_le_bytes(word(bytes)?)),
        SMALL => {
            let small = take(bytes, 4)?.try_into().expect("just that many were taken");
            Token::Int(i32::from_le_bytes(small).into())
        }
        ONE => Token::Tuple(1),
        FLOAT => Token::Float(f64::from_le_bytes(word(bytes)?)),
        STR => {
            let len = length(bytes, 1)?;
            let text = std::str::from_utf8(take(bytes, len)?);
            Token::Str(text.map_err(|error| Corrupt(format!("a plain string: {error}")))?)
        }
        BYTES => {
            let len = length(bytes, 1)?;
            Token::Bytes(take(bytes, len)?)
        }
        TUPLE => Token::Tuple(length(bytes, 1)?),
        LIST => Token::List(length(bytes, 1)?),
        DICT => Token::Dict(length(bytes, 2)?),
        other => return Err(Corrupt(format!("a plain value of unknown kind {other}"))),
    })
}

/// Goes past a whole value.
pub fn skip(bytes: &mut &[u8]) -> Result<(), Corrupt> {
    let mut left = 1usize;
    while left > 0 {
        left -= 1;
        left += match read(bytes)? {
            Token::Tuple(len) | Token::List(len) => len,
            Token::Dict(len) => 2 * len,
            _ => 0,
        };
    }
    Ok(())
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8], Corrupt> {
    let (front, rest) =
        bytes.split_at_checked(len).ok_or_else(|| Corrupt("a plain value is cut short".into()))?;
    *bytes = rest;
    Ok(front)
}

fn word(bytes: &mut &[u8]) -> Result<[u8; 8], Corrupt> {
    Ok(take(bytes, 8)?.try_into().expect("just that many were taken"))
}

/// A length that what is left can hold, if each part takes `least` bytes: so nobody reserves memory
/// for what cannot be there.
fn length(bytes: &mut &[u8], least: usize) -> Result<usize, Corrupt> {
    let len = u64::from_le_bytes(word(bytes)?);
    usize::try_from(len)
        .ok()
        .filter(|&len| len.checked_mul(least).is_some_and(|size| size <= bytes.len()))
        .ok_or_else(|| Corrupt(format!("a plain value of {len} parts where {} bytes are left", bytes.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Value {
        None,
        Bool(bool),
        Int(i64),
        Float(f64),
        Str(String),
        Bytes(Vec<u8>),
        Tuple(Vec<Value>),
        List(Vec<Value>),
        Dict(Vec<(Value, Value)>),
    }

    fn tokens<'a>(value: &'a Value, into: &mut Vec<Token<'a>>) {
        let (head, parts): (Token<'a>, Vec<&'a Value>) = match value {
            Value::None => (Token::None, vec![]),
            Value::Bool(value) => (Token::Bool(*value), vec![]),
            Value::Int(value) => (Token::Int(*value), vec![]),
            Value::Float(value) => (Token::Float(*value), vec![]),
            Value::Str(value) => (Token::Str(value), vec![]),
            Value::Bytes(value) => (Token::Bytes(value), vec![]),
            Value::Tuple(parts) => (Token::Tuple(parts.len()), parts.iter().collect()),
            Value::List(parts) => (Token::List(parts.len()), parts.iter().collect()),
            Value::Dict(pairs) => {
                (Token::Dict(pairs.len()), pairs.iter().flat_map(|(key, value)| [key, value]).collect())
            }
        };
        into.push(head);
        for part in parts {
            tokens(part, into);
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::None),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<f64>().prop_filter("not equal to itself", |x| !x.is_nan()).prop_map(Value::Float),
            any::<String>().prop_map(Value::Str),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
        ];
        leaf.prop_recursive(4, 60, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Tuple),
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
                prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Value::Dict),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_come_back_as_they_were(value in values()) {
            let mut expected = Vec::new();
            tokens(&value, &mut expected);
            let mut bytes = Small::new();
            for &token in &expected {
                write(token, &mut bytes);
            }
            let mut rest = &bytes[..];
            for token in expected {
                prop_assert_eq!(token, read(&mut rest).unwrap());
            }
            prop_assert!(rest.is_empty());
            let mut rest = &bytes[..];
            skip(&mut rest).unwrap();
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn no_bytes_make_more_parts_than_there_are(bytes in prop::collection::vec(0u8..14, 0..80)) {
            let mut rest = &bytes[..];
            while let Ok(token) = read(&mut rest) {
                if let Token::Tuple(len) | Token::List(len) | Token::Dict(len) = token {
                    prop_assert!(len <= rest.len() || len == 1);
                }
            }
        }
    }
}
