//! How programs move values: channels-last slices in, channels-last slices out, split by shape over
//! threads. What computes (convolution, pooling, addition) is in `ottava-tensor`. Lengths are the
//! caller's promise; nothing here can fail.
//!
//! A value of logical shape `[n, c, h, w]` lies in memory as `[n, h, w, c]`.

use std::ops::Range;

use bytemuck::AnyBitPattern;
use ottava_tensor::parallel::{CHUNK, for_each_chunk};
use ottava_tensor::{Element, Tensor};

use crate::ValueType;

/// Images as a caller has them.
#[derive(Clone, Copy)]
pub(crate) enum Images<'a> {
    /// `[n, c, h, w]`.
    ChannelsFirst(&'a [f32]),
    /// `[n, h, w, c]`.
    ChannelsLast(&'a [f32]),
}

impl Images<'_> {
    /// The elements of some of the images.
    pub(crate) fn slice(&self, elements: Range<usize>) -> Self {
        match *self {
            Self::ChannelsFirst(x) => Self::ChannelsFirst(&x[elements]),
            Self::ChannelsLast(x) => Self::ChannelsLast(&x[elements]),
        }
    }
}

/// Images of shape `[c, h, w]` to channels-last elements: `run(image, start, y)` for some pixels of an
/// image from `start` on, or `copy(x, y)` where both layouts are the same.
pub(crate) fn to_channels_last<T: Send>(
    x: Images<'_>,
    [c, h, w]: [usize; 3],
    y: &mut [T],
    run: impl Fn(&[f32], usize, &mut [T]) + Sync + Send,
    copy: impl Fn(&[f32], &mut [T]) + Sync + Send,
) {
    let pixels = h * w;
    match x {
        Images::ChannelsFirst(x) if c > 1 && pixels > 1 => {
            let task = (CHUNK / c).clamp(1, pixels);
            for_each_image_run(y, pixels * c, task * c, |image, at, y| {
                run(&x[image * c * pixels..][..c * pixels], at * task, y);
            });
        }
        // One channel or one pixel is the same in both.
        Images::ChannelsFirst(x) | Images::ChannelsLast(x) => {
            for_each_chunk(y, CHUNK, |i, y| copy(&x[i * CHUNK..][..y.len()], y));
        }
    }
}

/// Floats as they are, channels-last.
pub(crate) fn place_input(x: Images<'_>, shape: [usize; 3], y: &mut [f32]) {
    let [c, h, w] = shape;
    let run = |x: &[f32], start: usize, y: &mut [f32]| {
        for (channel, x) in x.chunks_exact(h * w).enumerate() {
            for (y, &x) in y[channel..].iter_mut().step_by(c).zip(&x[start..]) {
                *y = x;
            }
        }
    };
    to_channels_last(x, shape, y, run, |x, y| y.copy_from_slice(x));
}

/// Calls `f(image, run, chunk)` for each `run`-element piece of each `image`-element piece of `y`.
pub(crate) fn for_each_image_run<T: Send>(
    y: &mut [T],
    image: usize,
    run: usize,
    f: impl Fn(usize, usize, &mut [T]) + Sync + Send,
) {
    if image <= run {
        return for_each_chunk(y, image, |i, y| f(i, 0, y));
    }
    // Images one after another, the pieces of an image side by side: a piece is large already.
    for (i, y) in y.chunks_exact_mut(image).enumerate() {
        for_each_chunk(y, run, |at, y| f(i, at, y));
    }
}

/// Channels-last images in logical (NCHW) order.
pub(crate) fn to_logical_order<T: Copy + Sync + Send>(x: &[T], [c, h, w]: [usize; 3], y: &mut [T]) {
    let pixels = h * w;
    for_each_chunk(y, c * pixels, |image, y| {
        let x = &x[image * c * pixels..][..c * pixels];
        for (channel, y) in y.chunks_exact_mut(pixels).enumerate() {
            for (y, &x) in y.iter_mut().zip(x[channel..].iter().step_by(c)) {
                *y = x;
            }
        }
    });
}

/// The elements of values of the shape `from`, in the order in which a value of the shape `to` lies:
/// channels-last if it is an image.
pub(crate) fn reshape<T: Copy + Sync + Send>(
    x: &[T],
    from: [usize; 3],
    to: [usize; 3],
    y: &mut [T],
) {
    // Logical order is channels-last with channels and pixels exchanged.
    let [c, h, w] = to;
    let turned = [h * w, c, 1];
    if turned[0] == 1 || c == 1 {
        to_logical_order(x, from, y);
    } else if from[0] == 1 || from[1..] == [1, 1] {
        to_logical_order(x, turned, y);
    } else {
        let (pixels, image) = (from[1] * from[2], y.len().min(c * h * w));
        for_each_chunk(y, image, |batch, y| {
            let x = &x[batch * image..][..image];
            for (place, y) in y.iter_mut().enumerate() {
                let logical = place % c * (h * w) + place / c;
                *y = x[logical % pixels * from[0] + logical / pixels];
            }
        });
    }
}

/// The bytes of a value as a tensor, batch first.
pub(crate) fn tensor<T: Element + AnyBitPattern>(
    bytes: &[u8],
    batch: usize,
    shape: &[usize],
) -> Tensor<T> {
    let data: &[T] = bytemuck::cast_slice(bytes);
    let tensor = match *shape {
        [c, h, w] => Tensor::from_nhwc([batch, c, h, w], data),
        _ => Tensor::new(&[&[batch], shape].concat(), data),
    };
    tensor.expect("as many elements as planned")
}

/// Codes below `low` and above `high` become these.
pub(crate) fn clip_in_place(low: u8, high: u8, y: &mut [u8]) {
    for_each_chunk(y, CHUNK, |_, y| y.iter_mut().for_each(|y| *y = (*y).max(low).min(high)));
}

/// An axis of a value in memory: its size, and the bytes behind each of its indices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Axis {
    size: usize,
    inner: usize,
}

impl Axis {
    /// A logical axis, the batch being axis 0: of images (which lie channels-last) axis 1 is channels, 2
    /// rows, 3 columns.
    pub(crate) fn new(value: &ValueType, axis: usize) -> Self {
        let inner = match (&value.shape[..], axis) {
            (&[_, _, _], 1) => 1,
            (&[c, _, w], 2) => w * c,
            (&[c, _, _], _) => c,
            (shape, axis) => shape[axis..].iter().product(),
        };
        Self { size: value.shape[axis - 1], inner: inner * value.element_bytes() }
    }

    /// Bytes of all its indices.
    pub(crate) fn bytes(self) -> usize {
        self.size * self.inner
    }
}

/// Every `step`-th index from `start` on, `size` of them.
pub(crate) fn slice(axis: Axis, start: usize, step: usize, size: usize, x: &[u8], y: &mut [u8]) {
    let inner = axis.inner;
    for_each_chunk(y, size * inner, |outer, y| {
        let x = &x[(outer * axis.size + start) * inner..];
        if step == 1 {
            y.copy_from_slice(&x[..size * inner]);
        } else if inner == 1 {
            y.iter_mut().zip(x.iter().step_by(step)).for_each(|(y, &x)| *y = x);
        } else {
            for (y, x) in y.chunks_exact_mut(inner).zip(x.chunks(inner).step_by(step)) {
                y.copy_from_slice(x);
            }
        }
    });
}

/// The parts of `x` into the bytes `range` of each row of `y`, with other codes if there is a `table`.
pub(crate) fn concat(
    row: usize,
    range: Range<usize>,
    table: Option<&[u8; 256]>,
    x: &[u8],
    y: &mut [u8],
) {
    let rows = (CHUNK / row).max(1);
    for_each_chunk(y, rows * row, |i, y| {
        let parts = x[i * rows * range.len()..].chunks_exact(range.len());
        for (row, part) in y.chunks_exact_mut(row).zip(parts) {
            match table {
                None => row[range.clone()].copy_from_slice(part),
                Some(table) => {
                    let codes = row[range.clone()].iter_mut().zip(part);
                    codes.for_each(|(y, &x)| *y = table[usize::from(x)]);
                }
            }
        }
    });
}

/// `before` and `after` indices of `zero` around an axis.
pub(crate) fn pad(axis: Axis, before: usize, after: usize, zero: u8, x: &[u8], y: &mut [u8]) {
    let (size, inner) = (axis.size, axis.inner);
    for_each_chunk(y, (before + size + after) * inner, |outer, y| {
        let (start, rest) = y.split_at_mut(before * inner);
        let (middle, end) = rest.split_at_mut(size * inner);
        start.fill(zero);
        middle.copy_from_slice(&x[outer * size * inner..][..size * inner]);
        end.fill(zero);
    });
}
