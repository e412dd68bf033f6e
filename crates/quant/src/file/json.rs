//! A strict reader of JSON whose schema is known: no tree is built and nothing recurses, so that a
//! hostile header costs no more memory than its own length.

use std::borrow::Cow;
use std::collections::HashSet;
use std::str::FromStr;

use crate::{Error, Result};

/// A place in a JSON text.
pub(super) struct Reader<'a> {
    part: &'static str,
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    /// At the start of `text`; `part` tells errors where in the file that is.
    pub(super) fn new(part: &'static str, text: &'a str) -> Self {
        Self { part, text, at: 0 }
    }

    /// An error at this place.
    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        Error::File { part: self.part, offset: self.at, reason: reason.into() }
    }

    /// Checks that nothing but white space is left.
    pub(super) fn end(mut self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("expected nothing after the JSON value")),
        }
    }

    /// An object: `field` gets each key and reads its value. A key may stand once.
    pub(super) fn object(
        &mut self,
        mut field: impl FnMut(&mut Self, &str) -> Result<()>,
    ) -> Result<()> {
        let mut seen = HashSet::new();
        self.list(b'{', b'}', |reader| {
            let key = reader.string()?;
            reader.expect(b':')?;
            field(reader, &key)?;
            if seen.contains(&key) {
                return Err(reader.error(format!("{key:?} stands twice in one object")));
            }
            seen.insert(key);
            Ok(())
        })
    }

    /// An array: `item` reads each of its values.
    pub(super) fn array(&mut self, item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.list(b'[', b']', item)
    }

    /// An array of at most `N` numbers; how many there are.
    pub(super) fn numbers<T: FromStr + Copy + Default, const N: usize>(
        &mut self,
    ) -> Result<([T; N], usize)> {
        let (mut numbers, mut count) = ([T::default(); N], 0);
        self.array(|reader| {
            let number = reader.number()?;
            *numbers
                .get_mut(count)
                .ok_or_else(|| reader.error(format!("more than {N} numbers in an array")))? =
                number;
            count += 1;
            Ok(())
        })?;
        Ok((numbers, count))
    }

    /// Whether an array comes next.
    pub(super) fn at_array(&mut self) -> bool {
        self.peek() == Some(b'[')
    }

    /// A number that is a `T`.
    pub(super) fn number<T: FromStr>(&mut self) -> Result<T> {
        self.peek();
        let rest = &self.text[self.at..];
        let len = number_len(rest.as_bytes());
        let Ok(number) = rest[..len].parse() else {
            return Err(self.error(format!("expected a number, found {}", start_of(rest))));
        };
        self.at += len;
        Ok(number)
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self) -> Result<bool> {
        self.peek();
        let rest = &self.text[self.at..];
        for (word, value) in [("true", true), ("false", false)] {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.error(format!("expected true or false, found {}", start_of(rest))))
    }

    /// A string, borrowed unless it has escapes.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>> {
        self.expect(b'"')?;
        let mut owned = String::new();
        let mut start = self.at;
        loop {
            match self.text.as_bytes().get(self.at) {
                Some(b'"') => {
                    let last = &self.text[start..self.at];
                    self.at += 1;
                    if owned.is_empty() {
                        return Ok(last.into());
                    }
                    owned.push_str(last);
                    return Ok(owned.into());
                }
                Some(b'\\') => {
                    owned.push_str(&self.text[start..self.at]);
                    self.at += 1;
                    owned.push(self.escape()?);
                    start = self.at;
                }
                Some(0..0x20) => return Err(self.error("a control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.error("the text ends inside a string")),
            }
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self) -> Result<char> {
        let Some(&byte) = self.text.as_bytes().get(self.at) else {
            return Err(self.error("the text ends inside a string"));
        };
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.unit()?;
                // Beyond the basic plane, two units make a character.
                let low = match unit {
                    0xD800..0xDC00 if self.text[self.at..].starts_with("\\u") => {
                        self.at += 2;
                        Some(self.unit()?)
                    }
                    _ => None,
                };
                char::decode_utf16([unit].into_iter().chain(low))
                    .next()
                    .and_then(Result::ok)
                    .ok_or_else(|| self.error(format!("\\u{unit:04x} is half a character")))?
            }
            _ => return Err(self.error("an escape that JSON does not have")),
        })
    }

    fn unit(&mut self) -> Result<u16> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let unit = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit)).map(|digits| {
            digits.iter().fold(0, |unit, &digit| {
                unit << 4 | char::from(digit).to_digit(16).unwrap_or(0) as u16
            })
        });
        let unit = unit.ok_or_else(|| self.error("expected four hexadecimal digits"))?;
        self.at += 4;
        Ok(unit)
    }

    fn list(
        &mut self,
        open: u8,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.expect(open)?;
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(());
        }
        loop {
            item(self)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => return self.expect(close),
            }
        }
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.text.as_bytes().get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        let found = start_of(&self.text[self.at..]);
        Err(self.error(format!("expected {:?}, found {found}", char::from(byte))))
    }
}

/// The length of the JSON number that `text` starts with; 0 if there is none.
fn number_len(text: &[u8]) -> usize {
    let digits = |from: usize| text[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let sign = usize::from(text.first() == Some(&b'-'));
    let whole = digits(sign);
    if whole == 0 || whole > 1 && text[sign] == b'0' {
        return 0;
    }
    let mut len = sign + whole;
    if text.get(len) == Some(&b'.') {
        match digits(len + 1) {
            0 => return 0,
            fraction => len += 1 + fraction,
        }
    }
    if matches!(text.get(len), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(len + 1), Some(b'+' | b'-')));
        match digits(len + 1 + sign) {
            0 => return 0,
            exponent => len += 1 + sign + exponent,
        }
    }
    len
}

/// The first characters of what was found instead.
fn start_of(text: &str) -> String {
    match text.chars().count() {
        0 => "the end".into(),
        _ => format!("{:?}", text.chars().take(12).collect::<String>()),
    }
}

/// Appends `text` as a JSON string.
pub(super) fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\0'..' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string(text: &str) -> Result<String> {
        let mut reader = Reader::new("test", text);
        let value = reader.string()?.into_owned();
        reader.end().map(|()| value)
    }

    proptest! {
        #[test]
        fn quoted_text_reads_back(text in any::<String>()) {
            let mut quoted = String::new();
            quote(&mut quoted, &text);
            prop_assert_eq!(string(&quoted).unwrap(), text.clone());
            let theirs: String = serde_json::from_str(&quoted).unwrap();
            prop_assert_eq!(&theirs, &text);
            prop_assert_eq!(string(&serde_json::to_string(&text).unwrap()).unwrap(), text);
        }

        #[test]
        fn strings_and_numbers_are_those_of_serde_json(text in "[\"\\\\u0-9dDeE+.tnx/ -]{0,12}") {
            let theirs = serde_json::from_str::<String>(&text);
            prop_assert_eq!(string(&text).ok(), theirs.ok());
            let mut reader = Reader::new("test", &text);
            let ours = reader.number::<f64>().and_then(|x| reader.end().map(|()| x));
            let theirs = serde_json::from_str::<f64>(&text).ok();
            // serde_json refuses what overflows; here that is for the caller to check.
            prop_assert_eq!(ours.ok().filter(|x| x.is_finite()), theirs);
        }

        #[test]
        fn floats_read_back_exactly(bits: u32) {
            let x = f32::from_bits(bits);
            prop_assume!(x.is_finite());
            let mut reader = Reader::new("test", "");
            let text = format!("{x:?}");
            reader.text = &text;
            prop_assert_eq!(reader.number::<f32>().unwrap().to_bits(), bits);
        }
    }

    #[test]
    fn errors_say_where_and_what() {
        let read = |text: &'static str| {
            let mut reader = Reader::new("header", text);
            reader.object(|reader, _| reader.number::<usize>().map(drop)).unwrap_err().to_string()
        };
        assert_eq!(read("{\"a\":1,\"a\":2}"), "header, byte 12: \"a\" stands twice in one object");
        assert_eq!(read("{\"a\": -1}"), "header, byte 6: expected a number, found \"-1}\"");
        assert_eq!(read("{\"a\":01}"), "header, byte 5: expected a number, found \"01}\"");
        assert_eq!(read("{\"a\":1"), "header, byte 6: expected '}', found the end");
        assert_eq!(read("[]"), "header, byte 0: expected '{', found \"[]\"");
    }
}
