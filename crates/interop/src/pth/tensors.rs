//! From storages and strides to tensors.

use ottava_tensor::Tensor;

use super::Refusal;
use super::archive::Checkpoint;
use super::value::{Strided, Value};
use crate::StateDict;

/// Where training scripts put the weights among other things.
const PLACES: [&str; 9] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
];
/// Elements that all tensors together may have beyond four for each byte of the file. Strides of
/// zero repeat elements, so that a small file could ask for any amount of memory.
const FREE_ELEMENTS: usize = 1 << 24;

/// The named tensors of a checkpoint whose file has `file_len` bytes.
pub(super) fn state_dict(checkpoint: &Checkpoint, file_len: usize) -> Result<StateDict, Refusal> {
    let heap = &checkpoint.heap;
    let Some(root) = heap.entries(&checkpoint.root) else {
        return Refusal::unsupported("the file holds no dictionary; save model.state_dict()");
    };
    let holds_tensors =
        |entries: &[(Value, Value)]| entries.iter().any(|(_, v)| matches!(v, Value::Tensor(_)));
    let nested = PLACES.into_iter().find_map(|place| {
        let (_, value) = root.iter().rev().find(|(key, _)| heap.text(key) == Some(place))?;
        heap.entries(value).filter(|entries| holds_tensors(entries))
    });
    let Some(entries) = nested.or_else(|| holds_tensors(root).then_some(root)) else {
        let keys: Vec<&str> = root.iter().filter_map(|(key, _)| heap.text(key)).take(10).collect();
        return Refusal::unsupported(format!("no dictionary of tensors among {keys:?}"));
    };
    let mut budget = file_len.saturating_mul(4).saturating_add(FREE_ELEMENTS);
    let mut dict = StateDict::new();
    for (key, value) in entries {
        // What else training scripts leave there (an epoch, None) is no weight.
        let (Some(name), &Value::Tensor(id)) = (heap.text(key), value) else { continue };
        let tensor = materialize(checkpoint, &heap.tensors[id], &mut budget)
            .or_else(|reason| Refusal::damaged(format!("tensor {name:?}: {reason}")))?;
        dict.insert(name, tensor);
    }
    Ok(dict)
}

/// The elements of a view in logical order.
fn materialize(
    checkpoint: &Checkpoint,
    view: &Strided,
    budget: &mut usize,
) -> Result<Tensor<f32>, String> {
    let Strided { storage, offset, shape, strides } = view;
    let storage = &checkpoint.heap.storages[*storage];
    let bytes = checkpoint.storages.get(&*storage.key).ok_or("its storage is missing")?;
    let available = bytes.len() / storage.dtype.size();
    if shape.len() != strides.len() {
        return Err(format!("shape {shape:?} with strides {strides:?}"));
    }
    let len = shape.iter().try_fold(1usize, |len, &size| len.checked_mul(size));
    let len = len
        .filter(|len| len <= budget)
        .ok_or_else(|| format!("shape {shape:?} is beyond the file"))?;
    *budget -= len;
    if len == 0 {
        return Tensor::new(shape, []).map_err(|error| error.to_string());
    }
    // The last element that is read; sizes are not zero here.
    let last = shape.iter().zip(strides).try_fold(*offset, |last, (&size, &stride)| {
        (size - 1).checked_mul(stride).and_then(|step| last.checked_add(step))
    });
    let Some(last) = last.filter(|&last| last < available) else {
        return Err(format!(
            "offset {offset}, shape {shape:?} and strides {strides:?} leave a storage of \
             {available} elements"
        ));
    };
    let size = storage.dtype.size();
    let bytes = &bytes[offset * size..(last + 1) * size];
    if last + 1 - offset == len && is_row_major(shape, strides) {
        return Tensor::new(shape, storage.dtype.numbers(bytes)).map_err(|error| error.to_string());
    }
    // One by one: strides may leave out nearly all that lies between.
    let mut data = Vec::with_capacity(len);
    let (mut index, mut at) = (vec![0; shape.len()], 0);
    for _ in 0..len {
        data.push(storage.dtype.number(&bytes[at * size..(at + 1) * size]));
        // Count up like an odometer, the last axis first.
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    Tensor::new(shape, data).map_err(|error| error.to_string())
}

fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == step;
        step *= size;
        fits
    })
}
