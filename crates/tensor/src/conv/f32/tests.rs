use proptest::prelude::*;

use super::super::{ConvAttrs, ConvGeometry};
use super::forward::forward_with;
use super::reference::{self, wide};
use super::*;
use crate::parallel::tests::with_threads;
use crate::{Level, Tensor};

/// Values in [-1, 1] from a counter: tests need no generator, only something uneven.
fn uneven(shape: &[usize], seed: usize) -> Tensor<f32> {
    let value = |i: usize| {
        // As many bits on every machine.
        let hash = ((i + seed * 7919) as u64).wrapping_mul(2_654_435_761) % 20_011;
        hash as f32 / 10_005.0 - 1.0
    };
    let len = shape.iter().product::<usize>();
    Tensor::new(shape, (0..len).map(value).collect::<Vec<f32>>()).unwrap()
}

/// Geometries that fit: the input is made large enough for the window.
fn geometries() -> impl Strategy<Value = ConvGeometry> {
    let channels = (1usize..4, 1usize..20, 1usize..20, 1usize..3);
    let window = ([1usize..4, 1usize..4], [1usize..4, 1usize..4], [1usize..4, 1usize..4]);
    let padding = [0usize..4, 0usize..4, 0usize..4, 0usize..4];
    (channels, window, padding, [0usize..12, 0usize..40]).prop_map(
        |((groups, input, output, batch), (kernel, stride, dilation), padding, extra)| {
            let attrs = ConvAttrs { stride, padding, dilation, groups };
            let size = |axis: usize| (kernel[axis] - 1) * dilation[axis] + 1 + extra[axis];
            ConvGeometry::new(
                [batch, groups * input, size(0), size(1)],
                [groups * output, input, kernel[0], kernel[1]],
                attrs,
            )
            .unwrap()
        },
    )
}

/// Compares within the bound of a sum of `terms` products of values up to one.
#[track_caller]
fn assert_close(what: &str, level: Level, actual: &Tensor<f32>, expected: &[f64], terms: usize) {
    let bound = (terms as f64 + 2.0).powi(2) * f64::from(f32::EPSILON) / 2.0;
    assert_eq!(actual.len(), expected.len());
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((f64::from(a) - e).abs() <= bound, "{what} on {level:?}: element {i}: {a} for {e}");
    }
}

fn check(g: &ConvGeometry) {
    let x = uneven(&g.input_shape(), 1);
    let weight = uneven(&g.weight_shape(), 2);
    let bias = uneven(&[g.out_channels], 3);
    let grad = uneven(&g.output_shape(), 4);
    let [_, channels, kh, kw] = g.weight_shape();
    let y = reference::forward(&wide(&x), &wide(&weight), Some(&wide(&bias)), g);
    let dx = reference::grad_input(&wide(&grad), &wide(&weight), g);
    let dw = reference::grad_weight(&wide(&grad), &wide(&x), g);
    for level in Level::available() {
        let actual = forward_on(level, &x, &weight, Some(&bias), g);
        assert!(actual.is_channels_last());
        assert_close("forward", level, &actual, &y, channels * kh * kw + 1);
        let actual = grad_input_on(level, &grad, &weight, g);
        assert_close("grad_input", level, &actual, &dx, g.out_channels * kh * kw);
        let actual = grad_weight_on(level, &grad.channels_last(), &x.channels_last(), g);
        assert!(actual.is_contiguous());
        let pixels = g.batch * g.out_size[0] * g.out_size[1];
        assert_close("grad_weight", level, &actual, &dw, pixels);
        // Kept as codes, the same bits as of their values.
        let (zero_point, scale) = (77, 1.0 / 64.0);
        let codes = x.map(|x| (x * 60.0 + 100.0) as u8);
        let values = codes.map(|code| dequantize(code.into(), zero_point.into(), scale));
        let of_values = grad_weight_on(level, &grad, &values, g);
        let of_codes = grad_weight_on(level, &grad, Images::Codes { codes, zero_point, scale }, g);
        assert_eq!(of_codes, of_values, "grad_weight of codes on {level:?}");
    }
}

/// The last task has fewer rows of the image than the stride, and so none for some of its phases.
#[test]
fn a_stride_may_be_more_than_a_task_has_rows() {
    let attrs = ConvAttrs { stride: [3, 1], dilation: [2, 1], groups: 3, ..ConvAttrs::default() };
    check(&ConvGeometry::new([2, 51, 7, 15], [27, 17, 3, 3], attrs).unwrap());
}

/// A stride to where no second window is: memory is for the windows there are.
#[test]
fn strides_beyond_the_image_cost_nothing() {
    for stride in [[1 << 30, 1], [2, 1 << 30], [1 << 26; 2]] {
        let attrs = ConvAttrs { stride, padding: [1; 4], ..ConvAttrs::default() };
        check(&ConvGeometry::new([2, 3, 5, 40], [4, 3, 2, 3], attrs).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_level_convolves_like_the_reference(g in geometries()) {
        check(&g);
    }
}

#[test]
fn layers_of_resnets() {
    for (input, weight, stride, padding) in [
        ([1, 3, 40, 40], [64, 3, 7, 7], 2, 3),
        ([2, 16, 32, 32], [16, 16, 3, 3], 1, 1),
        ([2, 16, 32, 32], [32, 16, 3, 3], 2, 1),
        ([2, 16, 32, 32], [32, 16, 1, 1], 2, 0),
        ([40, 8, 32, 32], [8, 8, 1, 1], 2, 0),
        ([5, 64, 8, 8], [64, 64, 3, 3], 1, 1),
        ([3, 64, 7, 7], [100, 64, 3, 3], 1, 1),
    ] {
        check(&ConvGeometry::new(input, weight, ConvAttrs::new(stride, padding)).unwrap());
    }
}

/// Layers that Winograd's algorithm takes, and in tiles of how many results: even and odd sizes, all paddings,
/// channels that fill vectors and that do not, images of few tiles, and a gradient in several parts.
#[test]
fn winograd() {
    for (step, input, outputs, padding) in [
        (4, [2, 16, 32, 32], 16, [1; 4]),
        (2, [5, 9, 7, 9], 21, [1; 4]),
        (2, [40, 8, 6, 6], 12, [0; 4]),
        (4, [3, 33, 12, 8], 8, [2, 0, 1, 2]),
        (4, [40, 12, 8, 7], 40, [1; 4]),
        (2, [40, 40, 4, 4], 24, [1; 4]),
        (4, [1, 125, 14, 14], 16, [1; 4]),
        (2, [1, 300, 14, 14], 16, [1; 4]),
        (2, [1, 16, 8, 8], 130, [1; 4]),
        (4, [7, 16, 15, 13], 48, [0, 1, 2, 1]),
    ] {
        let attrs = ConvAttrs { padding, ..ConvAttrs::default() };
        let g = ConvGeometry::new(input, [outputs, input[1], 3, 3], attrs).unwrap();
        let steps = [winograd::Tiling::forward(&g), winograd::Tiling::backward(&g)]
            .map(|tiling| tiling.map(|tiling| tiling.step()));
        assert_eq!(steps, [Some(step); 2], "{g:?}");
        check(&g);
    }
}

/// Rounding stays that of a direct sum: against `f64`, the largest error of random layers is a few
/// units in the last place of the largest result.
#[test]
fn winograd_is_as_precise_as_a_direct_sum() {
    for (channels, step) in [(16, 4), (64, 4), (128, 4), (256, 2)] {
        let g =
            ConvGeometry::new([2, channels, 12, 12], [32, channels, 3, 3], ConvAttrs::new(1, 1))
                .unwrap();
        assert_eq!(winograd::Tiling::forward(&g).unwrap().step(), step);
        for seed in [1, 11, 21] {
            let (x, weight) = (uneven(&g.input_shape(), seed), uneven(&g.weight_shape(), seed + 1));
            let grad = uneven(&g.output_shape(), seed + 2);
            let (wide_x, wide_weight, wide_grad) = (wide(&x), wide(&weight), wide(&grad));
            let y = reference::forward(&wide_x, &wide_weight, None, &g);
            let dx = reference::grad_input(&wide_grad, &wide_weight, &g);
            let dw = reference::grad_weight(&wide_grad, &wide_x, &g);
            for level in Level::available() {
                for (actual, expected) in [
                    (forward_on(level, &x, &weight, None, &g), &y),
                    (grad_input_on(level, &grad, &weight, &g), &dx),
                    (grad_weight_on(level, &grad, &x, &g), &dw),
                ] {
                    let largest = expected.iter().fold(0.0f64, |m, e| m.max(e.abs()));
                    let errors = actual.iter().zip(expected).map(|(a, e)| (f64::from(a) - e).abs());
                    let worst = errors.fold(0.0, f64::max) / largest;
                    assert!(worst < 3e-6, "{level:?}, {channels} channels, {seed}: {worst:e}");
                }
            }
        }
    }
}

#[test]
fn depthwise_and_wider_groups() {
    for (channels, groups, outputs) in [(32, 32, 32), (20, 20, 40), (48, 3, 96)] {
        let attrs = ConvAttrs { groups, ..ConvAttrs::new(1, 1) };
        let weight = [outputs, channels / groups, 3, 3];
        check(&ConvGeometry::new([2, channels, 9, 11], weight, attrs).unwrap());
    }
}

/// The reference's gradients are those of its forward pass: central differences of a function that
/// is linear in each argument are exact up to rounding.
#[test]
fn gradients_agree_with_finite_differences() {
    let attrs = ConvAttrs { stride: [2, 1], padding: [1, 0, 2, 1], dilation: [1, 2], groups: 2 };
    let g = ConvGeometry::new([2, 4, 5, 6], [6, 2, 3, 2], attrs).unwrap();
    let x = wide(&uneven(&g.input_shape(), 1));
    let w = wide(&uneven(&g.weight_shape(), 2));
    let grad = wide(&uneven(&g.output_shape(), 3));
    let loss = |x: &[f64], w: &[f64]| -> f64 {
        reference::forward(x, w, None, &g).iter().zip(&grad).map(|(y, g)| y * g).sum()
    };
    let difference = |values: &[f64], i: usize, loss: &dyn Fn(&[f64]) -> f64| {
        let (mut up, mut down) = (values.to_vec(), values.to_vec());
        (up[i], down[i]) = (up[i] + 0.5, down[i] - 0.5);
        loss(&up) - loss(&down)
    };
    for (i, dx) in reference::grad_input(&grad, &w, &g).into_iter().enumerate() {
        assert!((difference(&x, i, &|x| loss(x, &w)) - dx).abs() < 1e-9);
    }
    for (i, dw) in reference::grad_weight(&grad, &x, &g).into_iter().enumerate() {
        assert!((difference(&w, i, &|w| loss(&x, w)) - dw).abs() < 1e-9);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for stride in [1, 2] {
        let attrs = ConvAttrs::new(stride, 1);
        let g = ConvGeometry::new([40, 16, 20, 20], [32, 16, 3, 3], attrs).unwrap();
        let (x, weight) = (uneven(&g.input_shape(), 1), uneven(&g.weight_shape(), 2));
        let grad = uneven(&g.output_shape(), 3);
        let all = || {
            let y = forward(&x, &weight, None, &g);
            [y, grad_input(&grad, &weight, &g), grad_weight(&grad, &x, &g)]
        };
        for (one, three) in with_threads(1, all).iter().zip(with_threads(3, all)) {
            assert_eq!(one.to_vec(), three.to_vec());
        }
    }
}

/// An image's results are the same bits in every batch, whichever algorithm its size chooses.
#[test]
fn a_batch_is_its_images() {
    for size in [2, 3, 4, 6, 8, 12] {
        let geometry = |batch| {
            let input = [batch, 13, size, size + 2];
            ConvGeometry::new(input, [10, 13, 3, 3], ConvAttrs::new(1, 1)).unwrap()
        };
        let (one, all) = (geometry(1), geometry(40));
        let (x, weight) = (uneven(&all.input_shape(), 1), uneven(&all.weight_shape(), 2));
        let grad = uneven(&all.output_shape(), 3);
        let (y, dx) = (forward(&x, &weight, None, &all), grad_input(&grad, &weight, &all));
        for image in [0, 1, 39] {
            let only = |t: &Tensor<f32>| t.slice(0, image..image + 1, 1).unwrap();
            assert_eq!(forward(&only(&x), &weight, None, &one).to_vec(), only(&y).to_vec());
            assert_eq!(grad_input(&only(&grad), &weight, &one).to_vec(), only(&dx).to_vec());
        }
    }
}

#[test]
fn an_empty_batch_is_ordinary() {
    for channels in [3, 16] {
        let shape = [16, channels, 3, 3];
        let g = ConvGeometry::new([0, channels, 8, 8], shape, ConvAttrs::new(1, 1)).unwrap();
        let (x, weight) = (Tensor::zeros(&[0, channels, 8, 8]), uneven(&shape, 1));
        let y = forward(&x, &weight, None, &g);
        assert_eq!(y.shape(), [0, 16, 8, 8]);
        assert_eq!(grad_input(&y, &weight, &g).shape(), [0, channels, 8, 8]);
        assert_eq!(grad_weight(&y, &x, &g), Tensor::zeros(&shape));
    }
}

/// Packed once: [`forward`], and what is added and cut off behind it, bit for bit, at any batch and number
/// of threads.
#[test]
fn packed_weights_and_endings_change_no_bit() {
    let same =
        |a: &[f32], b: &[f32]| a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()));
    for (channels, outputs, size, kernel, groups) in
        [(16, 24, 12, 3, 1), (16, 16, 6, 3, 1), (3, 8, 11, 5, 1), (8, 8, 3, 3, 2), (5, 7, 1, 1, 1)]
    {
        let attrs = ConvAttrs { groups, ..ConvAttrs::new(1, kernel / 2) };
        let shape = [outputs, channels / groups, kernel, kernel];
        let one = ConvGeometry::new([1, channels, size, size], shape, attrs).unwrap();
        let (weight, bias) = (uneven(&shape, 2), uneven(&[outputs], 3));
        for level in Level::available() {
            let conv = PackedConv::new_on(level, &weight, Some(&bias), &one);
            for batch in [1, 5] {
                let g = ConvGeometry { batch, ..one };
                let mut x = uneven(&g.input_shape(), 1).channels_last();
                x.data_mut()[0] = f32::NAN;
                let mut add = uneven(&g.output_shape(), 4).channels_last();
                add.data_mut()[1] = f32::NEG_INFINITY;
                let y = forward_on(level, &x, &weight, Some(&bias), &g);
                let [x, add, y] = [&x, &add, &y].map(|t| t.as_nhwc().unwrap());
                for (added, relu) in [(false, false), (false, true), (true, false), (true, true)] {
                    let expected: Vec<f32> = y
                        .iter()
                        .zip(add)
                        .map(|(y, add)| if added { y + add } else { *y })
                        .map(|y| if relu && y < 0.0 { 0.0 } else { y })
                        .collect();
                    let ending = Ending { add: added.then_some(add), relu };
                    for threads in [1, 2] {
                        let mut ours = vec![-1.0; y.len()];
                        with_threads(threads, || conv.run(batch, x, &ending, &mut ours));
                        assert!(same(&ours, &expected), "{g:?} on {level:?}: {added}, {relu}");
                    }
                }
            }
        }
    }
}

/// The same weights at one image size and another, which take tiles of different sizes.
#[test]
fn kept_weights_are_those_of_this_size() {
    let weight = uneven(&[16, 16, 3, 3], 2);
    for size in [8, 8, 8, 6, 6, 6, 10, 8, 6, 10, 10, 8] {
        let g = ConvGeometry::new([1, 16, size, size], [16, 16, 3, 3], ConvAttrs::new(1, 1))
            .expect("it fits");
        let x = uneven(&g.input_shape(), 1);
        let expected = reference::forward(&wide(&x), &wide(&weight), None, &g);
        let actual = infer(&x, &weight, None, &g);
        assert_close(&format!("{size}×{size}"), Level::current(), &actual, &expected, 16 * 9 + 1);
    }
}

/// Packed weights are kept between runs: never those of other values, of another layout, or of a slice.
#[test]
fn kept_weights_are_those_of_now() {
    for (channels, kernel) in [(8, 3), (6, 2)] {
        let shape = [channels, channels, kernel, kernel];
        let g =
            ConvGeometry::new([1, channels, 12, 12], shape, ConvAttrs::new(1, 1)).expect("it fits");
        let x = uneven(&g.input_shape(), 1);
        for level in Level::available() {
            let mut weight = uneven(&g.weight_shape(), 2);
            for seed in [3, 4] {
                let y = reference::forward(&wide(&x), &wide(&weight), None, &g);
                for run in 0..3 {
                    let actual = forward_with(level, &x, &weight, None, &g, true);
                    let terms = channels * kernel * kernel + 1;
                    assert_close(&format!("run {run}"), level, &actual, &y, terms);
                }
                weight.data_mut().copy_from_slice(&uneven(&g.weight_shape(), seed).to_vec());
            }
        }
        // The same elements as another window's weights: kernels of one pixel.
        let weight = uneven(&g.weight_shape(), 2);
        infer(&x, &weight, None, &g);
        infer(&x, &weight, None, &g);
        let pixels = [channels, channels * kernel * kernel, 1, 1];
        let other = ConvGeometry::new([1, pixels[1], 5, 5], pixels, ConvAttrs::new(1, 0)).unwrap();
        let (x1, w1) = (uneven(&other.input_shape(), 6), weight.reshape(&pixels).unwrap());
        let y = reference::forward(&wide(&x1), &wide(&w1), None, &other);
        for _ in 0..3 {
            let actual = infer(&x1, &w1, None, &other);
            assert_close("reshaped", Level::current(), &actual, &y, pixels[1] + 1);
        }
        let two = uneven(&[2 * channels, channels, kernel, kernel], 5);
        for half in 0..2 {
            let part = two.slice(0, half * channels..(half + 1) * channels, 1).unwrap();
            let y = reference::forward(&wide(&x), &wide(&part), None, &g);
            for _ in 0..3 {
                let actual = infer(&x, &part, None, &g);
                let terms = channels * kernel * kernel + 1;
                assert_close("a slice", Level::current(), &actual, &y, terms);
            }
        }
    }
}
