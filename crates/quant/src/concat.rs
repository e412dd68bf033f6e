use ottava_tensor::{Element, Error, Tensor};

use crate::Result;

/// `parts` one behind another along `axis`, channels-last.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) if sizes differ beside the axis, if there is no such axis, or
/// no part.
///
/// # Source
/// PyTorch `torch.cat`; ONNX `Concat`.
///
/// ```
/// use ottava_quant::concat;
/// use ottava_tensor::Tensor;
///
/// let a = Tensor::new(&[2, 1], [1, 4])?;
/// let b = Tensor::new(&[2, 2], [2, 3, 5, 6])?;
/// assert_eq!(concat(&[&a, &b], 1)?.to_vec(), [1, 2, 3, 4, 5, 6]);
/// # Ok::<(), ottava_quant::Error>(())
/// ```
pub fn concat<T: Element>(parts: &[&Tensor<T>], axis: usize) -> Result<Tensor<T>> {
    let first = parts.first().ok_or(Error::Length { shape: vec![], elements: 0 })?.shape();
    let rank = first.len();
    if axis >= rank {
        return Err(Error::Axis { op: "concat", axis, rank }.into());
    }
    let mut whole = first.to_vec();
    for part in &parts[1..] {
        let shape = part.shape();
        if shape.len() != rank || (0..rank).any(|i| i != axis && shape[i] != first[i]) {
            let (left, right) = (first.to_vec(), shape.to_vec());
            return Err(Error::ShapeMismatch { op: "concat", left, right }.into());
        }
        whole[axis] += shape[axis];
    }
    // What lies behind an index of the axis: channels are last, of three axes or more.
    let inner: usize = match axis {
        1 if rank > 2 => 1,
        _ if rank > 2 => {
            whole[axis + 1..].iter().product::<usize>() * if axis > 0 { whole[1] } else { 1 }
        }
        _ => whole[axis + 1..].iter().product(),
    };
    let row = whole[axis] * inner;
    let mut result = Tensor::zeros_channels_last(&whole);
    let mut start = 0;
    for part in parts {
        let size = part.shape()[axis] * inner;
        let part = if rank > 2 { part.channels_last() } else { part.contiguous() };
        let data = part.as_dense().expect("just made so");
        if size > 0 {
            let rows = result.data_mut().chunks_exact_mut(row).zip(data.chunks_exact(size));
            rows.for_each(|(row, part)| row[start..start + size].copy_from_slice(part));
        }
        start += size;
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_axis_and_layout() {
        let count = |shape: &[usize], from: usize| {
            let len: usize = shape.iter().product();
            Tensor::new(shape, Vec::from_iter((from..from + len).map(|i| i as i32))).unwrap()
        };
        for axis in 0..4 {
            let mut shape = [2, 3, 4, 5];
            let a = count(&shape, 0);
            shape[axis] = 2;
            let b = count(&shape, 1000).channels_last();
            let y = concat(&[&a, &b, &a], axis).unwrap();
            let size = a.shape()[axis];
            assert!(y.shape()[axis] == 2 * size + 2 && y.is_channels_last());
            assert_eq!(y.slice(axis, 0..size, 1).unwrap(), a);
            assert_eq!(y.slice(axis, size..size + 2, 1).unwrap(), b);
            assert_eq!(y.slice(axis, size + 2..2 * size + 2, 1).unwrap(), a);
        }
        let vectors = [count(&[2, 0], 0), count(&[2, 3], 7)];
        assert_eq!(concat(&[&vectors[0], &vectors[1]], 1).unwrap(), vectors[1]);
        assert!(concat(&[&vectors[0], &count(&[3, 1], 0)], 1).is_err());
        assert!(concat(&[&vectors[0]], 2).is_err() && concat::<u8>(&[], 0).is_err());
    }
}
