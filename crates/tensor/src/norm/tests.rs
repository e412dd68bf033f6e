use super::*;
use crate::parallel::tests::with_threads;

fn uneven(shape: &[usize], seed: usize) -> Tensor<f32> {
    let value = |i: usize| ((i + seed) * 7919 % 1009) as f32 / 500.0 - 0.7;
    let len = shape.iter().product::<usize>();
    Tensor::new(shape, (0..len).map(value).collect::<Vec<f32>>()).unwrap()
}

/// The values of one channel, in `f64`.
fn channel(x: &Tensor<f32>, c: usize) -> Vec<f64> {
    x.slice(1, c..c + 1, 1).unwrap().iter().map(f64::from).collect()
}

/// However a matrix lies in memory, and its gradient.
#[test]
fn transposed_rows_are_read_by_their_places() {
    let turned = |x: &Tensor<f32>| x.transpose(0, 1).unwrap().contiguous().transpose(0, 1).unwrap();
    let (x, grad) = (uneven(&[70, 5], 1), uneven(&[70, 5], 2));
    let (scale, shift) = ([0.5, -2.0, 1.0, 0.25, 3.0], [0.1, 0.2, -0.3, 0.4, -0.5]);
    let affine = |x: &Tensor<f32>| channel_affine(x, &scale, &shift, true);
    assert_eq!(affine(&turned(&x)), affine(&x));
    let sum = |x: &Tensor<f32>, y: &Tensor<f32>| channel_affine_add_relu(x, &scale, &shift, y);
    assert_eq!(sum(&turned(&x), &grad), sum(&x, &turned(&grad)));
    let back = |grad: &Tensor<f32>, x: &Tensor<f32>| {
        batch_norm_grad(grad, x, &shift, &scale, &scale, Gate::Open)
    };
    assert_eq!(back(&turned(&grad), &x), back(&grad, &turned(&x)));
    assert_eq!(back(&grad, &turned(&x)), back(&grad, &x));
}

/// What diverged has no variance, rather than none.
#[test]
fn values_that_are_not_finite_have_no_variance() {
    for bad in [f32::NAN, f32::INFINITY] {
        let x = Tensor::new(&[2, 2], [bad, 1.0, 1.0, 3.0]).unwrap();
        let Statistics { var, .. } = channel_statistics(&x);
        assert!(var[0].is_nan() && var[1] == 1.0, "{var:?}");
    }
    assert!(channel_statistics(&Tensor::zeros(&[0, 1])).var[0].is_nan());
}

#[test]
fn statistics_of_any_shape_and_layout() {
    for shape in [vec![7, 5], vec![3, 37, 5, 6], vec![2, 16, 40, 41], vec![1, 3, 2]] {
        let x = uneven(&shape, 1);
        let turned = x.transpose(0, 1).unwrap().contiguous().transpose(0, 1).unwrap();
        for x in [x.clone(), x.channels_last(), turned] {
            let Statistics { mean, var, ends } = channel_statistics(&x);
            let sums = channel_sums(&x);
            for c in 0..shape[1] {
                let values = channel(&x, c);
                let (n, sum) = (values.len() as f64, values.iter().sum::<f64>());
                let square = values.iter().map(|v| (v - sum / n).powi(2)).sum::<f64>();
                assert!((f64::from(mean[c]) - sum / n).abs() < 1e-6);
                assert!((f64::from(var[c]) - square / n).abs() < 1e-6);
                let ends = ends[c].map(f64::from);
                assert!(values.contains(&ends[0]) && values.contains(&ends[1]));
                assert!(values.iter().all(|v| (ends[0]..=ends[1]).contains(v)));
                assert!((f64::from(sums[c]) - sum).abs() < 1e-3);
            }
        }
    }
}

#[test]
fn variance_survives_a_large_mean() {
    let x = Tensor::new(&[4, 1], [4097.0f32, 4098.0, 4097.0, 4098.0]).unwrap();
    let Statistics { mean, var, ends } = channel_statistics(&x);
    assert_eq!((mean, var, ends), (vec![4097.5], vec![0.25], vec![[4097.0, 4098.0]]));
}

#[test]
fn affine_with_and_without_relu() {
    let x = Tensor::new(&[1, 2, 1, 2], [1.0f32, -2.0, 3.0, f32::NAN]).unwrap();
    let y = channel_affine(&x, &[2.0, -1.0], &[1.0, 0.0], false);
    assert_eq!(y.to_vec()[..3], [3.0, -3.0, -3.0]);
    let y = channel_affine(&x, &[2.0, -1.0], &[1.0, 0.0], true);
    assert_eq!(y.to_vec()[..3], [3.0, 0.0, 0.0]);
    assert!(y.to_vec()[3].is_nan());
}

/// Central differences in `f64` of `Σ grad·y`, statistics recomputed each time.
#[test]
fn gradients_agree_with_finite_differences() {
    let shape = [2, 3, 2, 3];
    let (x, grad) = (uneven(&shape, 1), uneven(&shape, 400));
    let (weight, epsilon) = ([0.5f32, -1.5, 2.0], 1e-5);
    let Statistics { mean, var, .. } = channel_statistics(&x);
    let inv_std = var.iter().map(|v| 1.0 / (v + 1e-5).sqrt()).collect::<Vec<f32>>();
    let (dx, dweight, dbias) = batch_norm_grad(&grad, &x, &mean, &inv_std, &weight, Gate::Open);
    for c in 0..3 {
        let (values, grads) = (channel(&x, c), channel(&grad, c));
        let n = values.len() as f64;
        let loss = |values: &[f64], weight: f64, bias: f64| {
            let mean = values.iter().sum::<f64>() / n;
            let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            let y = |v: &f64| weight * (v - mean) / (var + epsilon).sqrt() + bias;
            values.iter().zip(&grads).map(|(v, g)| g * y(v)).sum::<f64>()
        };
        let (w, h) = (f64::from(weight[c]), 1e-4);
        let dw = (loss(&values, w + h, 0.0) - loss(&values, w - h, 0.0)) / (2.0 * h);
        let db = (loss(&values, w, h) - loss(&values, w, -h)) / (2.0 * h);
        assert!((dw - f64::from(dweight[c])).abs() < 1e-4);
        assert!((db - f64::from(dbias[c])).abs() < 1e-4);
        for (i, dx) in channel(&dx, c).into_iter().enumerate() {
            let (mut up, mut down) = (values.clone(), values.clone());
            (up[i], down[i]) = (up[i] + h, down[i] - h);
            let expected = (loss(&up, w, 0.0) - loss(&down, w, 0.0)) / (2.0 * h);
            assert!((expected - dx).abs() < 1e-4, "{expected} {dx}");
        }
    }
}

/// One after the other gives the same bits.
#[test]
fn the_end_of_a_residual_block() {
    for shape in [[3, 5, 7, 9], [2, 16, 40, 41], [1, 70, 3, 3]] {
        let (mut x, shortcut) = (uneven(&shape, 1).to_vec(), uneven(&shape, 2));
        x[17] = f32::NAN;
        let x = Tensor::new(&shape, x).unwrap();
        let scale: Vec<f32> = (0..shape[1]).map(|c| c as f32 / 9.0 - 0.4).collect();
        let shift = vec![0.1; shape[1]];
        let sum = channel_affine(&x, &scale, &shift, false).zip_map("add", &shortcut, |a, b| a + b);
        let expected = sum.unwrap().map(|y| if y < 0.0 { 0.0 } else { y });
        let (y, words) = channel_affine_add_relu(&x, &scale, &shift, &shortcut);
        let bits = |x: &Tensor<f32>| Vec::from_iter(x.iter().map(f32::to_bits));
        assert_eq!(bits(&y), bits(&expected));
        for (i, y) in y.as_nhwc().unwrap().iter().enumerate() {
            let open = words[i / bits::WORD] >> (i % bits::WORD) & 1 == 1;
            assert_eq!(open, *y > 0.0 || y.is_nan());
        }
    }
}

/// A gate in the passes is a gate before them.
#[test]
fn what_does_not_pass_counts_as_zero() {
    for shape in [[3, 5, 7, 9], [2, 16, 40, 41], [1, 70, 3, 3]] {
        let (x, grad) = (uneven(&shape, 1).channels_last(), uneven(&shape, 2).channels_last());
        let channels = shape[1];
        let (scale, shift) = (vec![-0.7f32; channels], vec![0.1f32; channels]);
        let value = |x: f32| scale[0] * x + shift[0];
        let zeroed = grad.zip_map("gate", &x, |g, x| if value(x) > 0.0 { g } else { 0.0 }).unwrap();
        let mut words = vec![0u64; x.len().div_ceil(bits::WORD)];
        for (i, &x) in x.as_nhwc().unwrap().iter().enumerate() {
            words[i / bits::WORD] |= u64::from(value(x) > 0.0) << (i % bits::WORD);
        }
        let back = |grad, gate| batch_norm_grad(grad, &x, &shift, &shift, &scale, gate);
        let expected = back(&zeroed, Gate::Open);
        assert!(back(&grad, Gate::Relu { scale: &scale, shift: &shift }) == expected);
        assert!(back(&grad, Gate::Bits(&words)) == expected);
        assert!(back(&grad, Gate::Open) != expected);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (x, grad) = (uneven(&[4, 24, 40, 40], 1), uneven(&[4, 24, 40, 40], 2));
    let all = || {
        let Statistics { mean, var, .. } = channel_statistics(&x);
        let gate = Gate::Relu { scale: &var, shift: &mean };
        (batch_norm_grad(&grad, &x, &mean, &var, &mean, gate), channel_sums(&x), var)
    };
    assert!(with_threads(1, all) == with_threads(2, all));
}
