//! The stack machine of Python's pickles, with nothing to call but what builds tensors.
//!
//! Source: the comments of Python's `pickletools`; `torch/serialization.py`.

use std::collections::HashMap;

use super::Refusal;
use super::value::{Global, Heap, Storage, Strided, Value};

/// Runs the pickle at `bytes[*at..]` and leaves `at` behind its end.
pub(super) fn load(bytes: &[u8], at: &mut usize, heap: &mut Heap) -> Result<Value, Refusal> {
    let mut machine = Machine {
        bytes,
        at: *at,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copies: bytes.len().saturating_mul(4),
        heap,
    };
    let result = machine.run().map_err(|refusal| match refusal {
        Refusal::Damaged(reason) => {
            Refusal::Damaged(format!("{reason} (byte {} of the pickle)", machine.at))
        }
        Refusal::Unsupported(_) => refusal,
    });
    *at = machine.at;
    result
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack to return to.
    marks: Vec<usize>,
    memo: HashMap<usize, Value>,
    /// Values that may still be copied out of the memo's: a call takes two bytes, whatever it is given.
    copies: usize,
    heap: &'a mut Heap,
}

/// Instructions that a pickle may have: far more than the names and shapes of any network need. One of
/// a byte makes an object of many in memory.
const MAX_STEPS: usize = 1 << 22;

/// No tensor has more axes.
const MAX_RANK: usize = 16;

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value, Refusal> {
        for _ in 0..MAX_STEPS {
            let [code] = self.array()?;
            match code {
                b'.' => return self.pop(),
                // PROTO, FRAME: nothing to do.
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),

                // Constants.
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'J' => {
                    let number = i32::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(number.into()));
                }
                b'K' => {
                    let number = self.length(1)?;
                    self.stack.push(Value::Int(number as i64));
                }
                b'M' => {
                    let number = self.length(2)?;
                    self.stack.push(Value::Int(number as i64));
                }
                0x8a => self.long()?,
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Float);
                }
                b'X' => self.text(4)?,
                0x8c => self.text(1)?,
                0x8d => self.text(8)?,
                // Python 2's texts.
                b'T' => self.text(4)?,
                b'U' => self.text(1)?,
                b'B' => self.opaque(4)?,
                b'C' => self.opaque(1)?,
                0x8e => self.opaque(8)?,

                // Containers.
                b'(' => self.marks.push(self.stack.len()),
                b')' => self.push_tuple(0)?,
                0x85 => self.push_tuple(1)?,
                0x86 => self.push_tuple(2)?,
                0x87 => self.push_tuple(3)?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    let tuple = self.heap.tuple(items);
                    self.stack.push(tuple);
                }
                b']' => {
                    let list = self.heap.list(Vec::new());
                    self.stack.push(list);
                }
                b'l' => {
                    let items = self.pop_to_mark()?;
                    let list = self.heap.list(items);
                    self.stack.push(list);
                }
                b'}' => {
                    let dict = self.heap.dict(Vec::new());
                    self.stack.push(dict);
                }
                b'd' => {
                    let items = self.pop_to_mark()?;
                    let dict = self.heap.dict(pairs(items)?);
                    self.stack.push(dict);
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(items)?;
                }

                // The memo and the stack.
                b'q' => {
                    let place = self.length(1)?;
                    self.memorize(place)?;
                }
                b'r' => {
                    let place = self.length(4)?;
                    self.memorize(place)?;
                }
                0x94 => self.memorize(self.memo.len())?,
                b'h' => {
                    let place = self.length(1)?;
                    self.recall(place)?;
                }
                b'j' => {
                    let place = self.length(4)?;
                    self.recall(place)?;
                }
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = self.top()?.clone();
                    self.stack.push(top);
                }

                // Names and calls.
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (&module, &name) {
                        (Value::Text(module), Value::Text(name)) => self.global(module, name)?,
                        _ => return Refusal::damaged("a name that is no text"),
                    }
                }
                b'Q' => self.persistent()?,
                b'R' => self.call()?,
                b'b' => self.build()?,
                code => {
                    return Refusal::unsupported(format!(
                        "the pickle uses opcode {:?} (0x{code:02x}) at byte {}, which no state \
                         dict needs; save model.state_dict() alone",
                        char::from(code),
                        self.at - 1
                    ));
                }
            }
        }
        Refusal::damaged(format!("more than {MAX_STEPS} instructions"))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.get(..count) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => Refusal::damaged(format!("{count} bytes expected, {} left", rest.len())),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// An unsigned number of `bytes` bytes, at most eight.
    fn length(&mut self, bytes: usize) -> Result<usize, Refusal> {
        let mut wide = [0; 8];
        wide[..bytes].copy_from_slice(self.take(bytes)?);
        usize::try_from(u64::from_le_bytes(wide))
            .or_else(|_| Refusal::damaged("a length beyond the address space"))
    }

    fn line(&mut self) -> Result<&'a str, Refusal> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            return Refusal::damaged("a line without an end");
        };
        let line = self.take(end)?;
        self.take(1)?;
        std::str::from_utf8(line).or_else(|_| Refusal::damaged("a name that is not UTF-8"))
    }

    fn text(&mut self, width: usize) -> Result<(), Refusal> {
        let length = self.length(width)?;
        match std::str::from_utf8(self.take(length)?) {
            Ok(text) => self.stack.push(Value::Text(text.into())),
            Err(_) => return Refusal::damaged("a text that is not UTF-8"),
        }
        Ok(())
    }

    fn opaque(&mut self, width: usize) -> Result<(), Refusal> {
        let length = self.length(width)?;
        self.take(length)?;
        self.stack.push(Value::Opaque);
        Ok(())
    }

    /// A little-endian integer of up to 255 bytes.
    fn long(&mut self) -> Result<(), Refusal> {
        let length = self.length(1)?;
        let bytes = self.take(length)?;
        self.stack.push(if length > 8 {
            Value::Opaque
        } else {
            let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..length].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        });
        Ok(())
    }

    /// The items above the last mark are out of reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value, Refusal> {
        let value = if self.stack.len() > self.floor() { self.stack.pop() } else { None };
        value.map_or_else(|| Refusal::damaged("the stack is empty"), Ok)
    }

    fn top(&self) -> Result<&Value, Refusal> {
        let value = if self.stack.len() > self.floor() { self.stack.last() } else { None };
        value.map_or_else(|| Refusal::damaged("the stack is empty"), Ok)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, Refusal> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Refusal::damaged("no mark on the stack"),
        }
    }

    fn push_tuple(&mut self, count: usize) -> Result<(), Refusal> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        let tuple = self.heap.tuple(items);
        self.stack.push(tuple);
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), Refusal> {
        match *self.top()? {
            Value::List(id) => self.heap.lists[id].extend(items),
            _ => return Refusal::damaged("items for what is no list"),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value>) -> Result<(), Refusal> {
        match *self.top()? {
            Value::Dict(id) => self.heap.dicts[id].extend(pairs(items)?),
            _ => return Refusal::damaged("entries for what is no dictionary"),
        }
        Ok(())
    }

    fn memorize(&mut self, place: usize) -> Result<(), Refusal> {
        let value = self.top()?.clone();
        self.memo.insert(place, value);
        Ok(())
    }

    fn recall(&mut self, place: usize) -> Result<(), Refusal> {
        match self.memo.get(&place) {
            Some(value) => self.stack.push(value.clone()),
            None => return Refusal::damaged(format!("memo {place} was never written")),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Refusal> {
        match Global::find(module, name) {
            Some(global) => self.stack.push(Value::Global(global)),
            None => {
                return Refusal::unsupported(format!(
                    "the pickle names {:?}, which is not part of a state dict and is not run; save \
                     model.state_dict() alone",
                    format!("{module}.{name}")
                ));
            }
        }
        Ok(())
    }

    /// `('storage', type, key, location, count)`: numbers outside the pickle.
    fn persistent(&mut self) -> Result<(), Refusal> {
        let id = self.pop()?;
        let storage = match self.heap.items(&id) {
            // Before PyTorch 0.4 a sixth item told of a view; None says there is none.
            Some(
                [tag, Value::Global(Global::Storage(dtype)), Value::Text(key), _, _, view @ ..],
            ) if self.heap.text(tag) == Some("storage") && matches!(view, [] | [Value::None]) => {
                Some(Storage { key: key.clone(), dtype: *dtype })
            }
            _ => None,
        };
        let Some(storage) = storage else {
            return Refusal::unsupported(
                "the pickle refers to something that is not a plain storage",
            );
        };
        self.heap.storages.push(storage);
        self.stack.push(Value::Storage(self.heap.storages.len() - 1));
        Ok(())
    }

    fn call(&mut self) -> Result<(), Refusal> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = function else {
            return Refusal::damaged("a call of what is no function");
        };
        let given = self.heap.items(&arguments).unwrap_or_default();
        let result = match (function, given) {
            (Global::OrderedDict, []) => self.heap.dict(Vec::new()),
            // Python 2 passes the entries, each a list of two.
            (Global::OrderedDict, [entries]) => {
                let pair = |entry: &Value| match self.heap.items(entry)? {
                    [key, value] => Some((key.clone(), value.clone())),
                    _ => None,
                };
                let entries = self.heap.items(entries).unwrap_or_default();
                let Some(copies) = self.copies.checked_sub(entries.len()) else {
                    return Refusal::damaged("dictionaries of more entries than it has bytes");
                };
                self.copies = copies;
                match entries.iter().map(pair).collect::<Option<Vec<_>>>() {
                    Some(entries) => self.heap.dict(entries),
                    None => return Refusal::damaged("a dictionary of what are no pairs"),
                }
            }
            (
                Global::RebuildTensor,
                [Value::Storage(storage), Value::Int(offset), shape, strides, ..],
            ) => {
                let offset = usize::try_from(*offset).ok();
                let sizes = |value| self.heap.sizes(value, MAX_RANK);
                let sizes = (offset, sizes(shape), sizes(strides));
                let (Some(offset), Some(shape), Some(strides)) = sizes else {
                    return Refusal::damaged(format!(
                        "a tensor of more than {MAX_RANK} axes, or with a negative offset, size or stride"
                    ));
                };
                let storage = *storage;
                self.heap.tensors.push(Strided { storage, offset, shape, strides });
                Value::Tensor(self.heap.tensors.len() - 1)
            }
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => tensor.clone(),
            (Global::Size, [sizes @ Value::Tuple(_)]) => sizes.clone(),
            _ => return Refusal::damaged(format!("{function:?} called with other arguments")),
        };
        self.stack.push(result);
        Ok(())
    }

    /// Attributes of an object. Those of a dictionary (`_metadata`) are not looked at, and nothing
    /// else may have any.
    fn build(&mut self) -> Result<(), Refusal> {
        self.pop()?;
        match self.top()? {
            Value::Dict(_) => Ok(()),
            _ => Refusal::unsupported("the pickle sets attributes of what is no dictionary"),
        }
    }
}

/// Alternating keys and values.
fn pairs(items: Vec<Value>) -> Result<Vec<(Value, Value)>, Refusal> {
    if !items.len().is_multiple_of(2) {
        return Refusal::damaged("a key without a value");
    }
    let mut items = items.into_iter();
    Ok(std::iter::from_fn(|| Some((items.next()?, items.next()?))).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(bytes: &[u8]) -> Result<Value, Refusal> {
        load(bytes, &mut 0, &mut Heap::default())
    }

    /// A list of 1000 references to one pair, made a dictionary of again and again.
    #[test]
    fn copies_stay_in_proportion_to_the_file() {
        let list = [b"]q\0(K\x01K\x01\x86q\x01".as_slice(), &b"h\x01".repeat(1000), b"e0"].concat();
        let dictionaries = |count: usize| {
            let call = b"h\x02h\0\x85R0".repeat(count);
            let function = b"ccollections\nOrderedDict\nq\x02".as_slice();
            run(&[&list, function, &call, b"."].concat())
        };
        assert!(dictionaries(2).is_ok());
        assert!(
            matches!(dictionaries(200), Err(Refusal::Damaged(reason)) if reason.contains("entries"))
        );
    }

    #[test]
    fn whatever_could_act_is_refused_by_name() {
        let message = |bytes: &[u8]| match run(bytes) {
            Err(Refusal::Unsupported(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert!(message(b"cposix\nsystem\n(X\x02\0\0\0lstR.").contains("\"posix.system\""));
        assert!(message(b"\x8c\x02os\x8c\x06system\x93.").contains("\"os.system\""));
        assert!(message(b"(S'ls'\nios\nsystem\n.").contains("opcode 'S'"));
        assert!(message(b"\x82\x01.").contains("0x82"));
    }

    #[test]
    fn containers_that_hold_themselves_are_harmless() {
        // l = []; l.append(l)
        assert!(matches!(run(b"]q\x00h\x00a."), Ok(Value::List(0))));
        // A tuple in a tuple in a tuple, a million deep.
        let deep = [b")".as_slice(), &[0x85; 1_000_000], b"."].concat();
        assert!(matches!(run(&deep), Ok(Value::Tuple(1_000_000))));
    }

    #[test]
    fn integers() {
        assert!(matches!(run(b"\x8a\x01\xff."), Ok(Value::Int(-1))));
        assert!(matches!(run(b"\x8a\x00."), Ok(Value::Int(0))));
        assert!(matches!(run(b"J\xfe\xff\xff\xff."), Ok(Value::Int(-2))));
        assert!(matches!(run(b"M\x00\x80."), Ok(Value::Int(0x8000))));
    }

    #[test]
    fn an_item_below_a_mark_is_out_of_reach() {
        for bytes in
            [b"K\x01(0.".as_slice(), b"(.", b"t.", b"a.", b"K\x01s.", b"u.", b"X\xff\xff\xff\xff."]
        {
            assert!(matches!(run(bytes), Err(Refusal::Damaged(_))), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_program_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = run(&bytes);
        }

        #[test]
        fn no_program_of_the_opcodes_we_know_panics(
            codes in prop::collection::vec(
                prop::sample::select(b"NK\x01(t)]}aesu0q\x00h\x00\x85\x86\x87ldQRb2.".to_vec()),
                0..200,
            ),
        ) {
            let _ = run(&codes);
        }
    }
}
