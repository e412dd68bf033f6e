use super::*;
use crate::conv::PoolGeometry;
use crate::parallel::tests::with_threads;
use crate::{Tensor, parallel};
use proptest::prelude::*;

fn uneven(shape: &[usize], seed: usize) -> Tensor<f32> {
    let value = |i: usize| ((i + seed) * 7919 % 1009) as f32 / 500.0 - 1.0;
    let len = shape.iter().product::<usize>();
    Tensor::new(shape, (0..len).map(value).collect::<Vec<f32>>()).unwrap()
}

fn geometries() -> impl Strategy<Value = PoolGeometry> {
    let window = ([1usize..5, 1usize..5], [1usize..4, 1usize..4], prop::array::uniform4(0usize..9));
    (1usize..3, 1usize..20, window, [0usize..9, 0usize..9]).prop_map(
        |(batch, channels, (kernel, stride, padding), extra)| {
            let padding: [usize; 4] = std::array::from_fn(|i| padding[i] % (kernel[i % 2] / 2 + 1));
            let shape = [batch, channels, kernel[0] + extra[0], kernel[1] + extra[1]];
            PoolGeometry::new(shape, kernel, stride, padding).unwrap()
        },
    )
}

/// Calls `f(output, input)` with the row-major indices of each pair that a window joins.
fn for_each_pair(g: &PoolGeometry, mut f: impl FnMut(usize, usize)) {
    for plane in 0..g.batch * g.channels {
        for i in 0..g.out_size[0] {
            for j in 0..g.out_size[1] {
                for u in 0..g.kernel[0] {
                    for v in 0..g.kernel[1] {
                        let y = (i * g.stride[0] + u).wrapping_sub(g.padding[0]);
                        let x = (j * g.stride[1] + v).wrapping_sub(g.padding[1]);
                        if y < g.in_size[0] && x < g.in_size[1] {
                            let output = (plane * g.out_size[0] + i) * g.out_size[1] + j;
                            f(output, (plane * g.in_size[0] + y) * g.in_size[1] + x);
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn max_pooling_takes_the_first_of_the_largest(g in geometries()) {
        let x = uneven(&g.input_shape(), 1);
        let grad = uneven(&g.output_shape(), 2);
        let (y, winners) = max_pool(&x, &g);
        let dx = max_pool_grad(&grad, &winners, &g);

        let (data, grads) = (x.to_vec(), grad.to_vec());
        let mut best = vec![usize::MAX; y.len()];
        for_each_pair(&g, |output, input| {
            if best[output] == usize::MAX || data[input] > data[best[output]] {
                best[output] = input;
            }
        });
        let mut expected = vec![0.0f32; x.len()];
        for (output, &input) in best.iter().enumerate() {
            expected[input] += grads[output];
        }
        prop_assert_eq!(y.to_vec(), best.iter().map(|&i| data[i]).collect::<Vec<f32>>());
        let plane = g.in_size[0] * g.in_size[1];
        let places = best.iter().map(|&i| (i % plane) as i32).collect::<Vec<i32>>();
        prop_assert_eq!(winners.to_vec(), places);
        for (a, b) in dx.iter().zip(expected) {
            prop_assert!((a - b).abs() <= 1e-5);
        }
    }

    #[test]
    fn average_pooling_and_its_gradient(g in geometries(), include in any::<bool>()) {
        let x = uneven(&g.input_shape(), 1);
        let grad = uneven(&g.output_shape(), 2);
        let mut counts = vec![0.0f64; grad.len()];
        for_each_pair(&g, |output, _| counts[output] += 1.0);
        if include {
            counts.fill((g.kernel[0] * g.kernel[1]) as f64);
        }
        let (mut y, mut dx) = (vec![0.0f64; grad.len()], vec![0.0f64; x.len()]);
        let (data, grads) = (x.to_vec(), grad.to_vec());
        for_each_pair(&g, |output, input| {
            y[output] += f64::from(data[input]) / counts[output];
            dx[input] += f64::from(grads[output]) / counts[output];
        });
        for (a, b) in avg_pool(&x, &g, include).iter().zip(y) {
            prop_assert!((f64::from(a) - b).abs() <= 1e-5);
        }
        for (a, b) in avg_pool_grad(&grad, &g, include).iter().zip(dx) {
            prop_assert!((f64::from(a) - b).abs() <= 1e-5);
        }
    }
}

#[test]
fn nan_wins() {
    let g = PoolGeometry::new([1, 1, 1, 3], [1, 3], [1, 1], [0; 4]).unwrap();
    for data in [[f32::NAN, 2.0, 3.0], [1.0, f32::NAN, 3.0], [1.0, 2.0, f32::NAN]] {
        let (y, _) = max_pool(&Tensor::new(&[1, 1, 1, 3], data).unwrap(), &g);
        assert!(y.item().unwrap().is_nan());
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let g = PoolGeometry::new([4, 8, 64, 64], [3, 3], [2, 2], [1; 4]).unwrap();
    let (x, grad) = (uneven(&g.input_shape(), 1), uneven(&g.output_shape(), 2));
    assert!(x.len() > parallel::CHUNK);
    let all = || {
        let (y, winners) = max_pool(&x, &g);
        [y, max_pool_grad(&grad, &winners, &g), avg_pool_grad(&grad, &g, false)]
    };
    assert!(with_threads(1, all) == with_threads(2, all));
}
