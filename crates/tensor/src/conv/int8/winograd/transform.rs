//! The three transforms. Those of input and output go a vector of channels at a time; the
//! matrices are constants: after unrolling, zeros vanish and small factors become shifts.

use super::variant::Variant;
use crate::simd::int8::Int8;

/// Filters that are transformed at a time: plain loops over them become vectors on any machine.
pub(crate) const FILTERS: usize = 16;

/// `U = G g Gᵀ` for `FILTERS` filters `g[tap][filter]`: `U[t][filter]`, which fits `i16` (see
/// [`Variant`]), so that sums on the way may wrap.
pub(crate) fn filter_tiles<V: Variant>(g: &[[i16; FILTERS]; 9]) -> [[i16; FILTERS]; 36] {
    let multiply_add = |sum: &mut [i16; FILTERS], k: i16, x: &[i16; FILTERS]| {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum = sum.wrapping_add(k.wrapping_mul(x));
        }
    };
    let mut rows = [[[0; FILTERS]; 3]; 6]; // G g
    for (row, coefficients) in rows.iter_mut().zip(&V::G).take(V::TILE) {
        for (x, sum) in row.iter_mut().enumerate() {
            for (y, &k) in coefficients.iter().enumerate() {
                multiply_add(sum, k, &g[y * 3 + x]);
            }
        }
    }
    let mut tiles = [[0; FILTERS]; 36];
    for (t, sum) in tiles.iter_mut().enumerate().take(V::TILE * V::TILE) {
        for (x, &k) in V::G[t % V::TILE].iter().enumerate() {
            multiply_add(sum, k, &rows[t / V::TILE][x]);
        }
    }
    tiles
}

/// `V = Bᵀ (d − z) B` for `2 · LANES` channels of one tile. `codes` starts at the tile's first pixel,
/// `strides` are those of rows and pixels; position `t` is written at `out[t · position..]`.
#[inline(always)]
pub(crate) fn input_tile<I: Int8, V: Variant>(
    isa: I,
    codes: &[u8],
    strides: [usize; 2],
    zero_point: u8,
    out: &mut [i16],
    position: usize,
) {
    let zero = isa.centre(&[0; 128], 0);
    let mut columns = [[zero; 6]; 6];
    for x in 0..V::TILE {
        let mut d = [zero; 6];
        for (y, d) in d.iter_mut().enumerate().take(V::TILE) {
            *d = isa.centre(&codes[y * strides[0] + x * strides[1]..], zero_point);
        }
        let transformed = input_vector::<I, V>(isa, d);
        for (y, &value) in transformed.iter().enumerate().take(V::TILE) {
            columns[y][x] = value;
        }
    }
    for (y, &row) in columns.iter().enumerate().take(V::TILE) {
        let transformed = input_vector::<I, V>(isa, row);
        for (x, &value) in transformed.iter().enumerate().take(V::TILE) {
            isa.store_half(value, &mut out[(y * V::TILE + x) * position..]);
        }
    }
}

/// `Bᵀ d`.
#[inline(always)]
fn input_vector<I: Int8, V: Variant>(isa: I, d: [I::Half; 6]) -> [I::Half; 6] {
    let mut out = d;
    for (out, row) in out.iter_mut().zip(&V::BT).take(V::TILE) {
        let mut sum = isa.centre(&[0; 128], 0);
        for (&k, &d) in row.iter().zip(&d).take(V::TILE) {
            sum = match k {
                0 => sum,
                1 => isa.add_half(sum, d),
                -1 => isa.sub_half(sum, d),
                k if k < 0 => isa.sub_half(sum, isa.scale_half(d, -k)),
                k => isa.add_half(sum, isa.scale_half(d, k)),
            };
        }
        *out = sum;
    }
    out
}

/// `((Aᵀ M A) · q⁻¹ − centre) >> 2v, + bias` for `LANES` channels of one tile, position `t` at
/// `sums[t · stride..]`. `centre` is 2^{2v} times what `bias` adds back.
#[inline(always)]
pub(crate) fn output_tile<I: Int8, V: Variant>(
    isa: I,
    sums: &[i32],
    stride: usize,
    centre: I::Acc,
    bias: I::Acc,
) -> [[I::Acc; 4]; 4] {
    let mut columns = [[isa.zero(); 6]; 4];
    for x in 0..V::TILE {
        let mut m = [isa.zero(); 6];
        for (y, m) in m.iter_mut().enumerate().take(V::TILE) {
            *m = isa.load(&sums[(y * V::TILE + x) * stride..]);
        }
        let transformed = output_vector::<I, V>(isa, m);
        for (y, &value) in transformed.iter().enumerate().take(V::OUT) {
            columns[y][x] = value;
        }
    }
    let mut out = [[isa.zero(); 4]; 4];
    for (out, &row) in out.iter_mut().zip(&columns).take(V::OUT) {
        let transformed = output_vector::<I, V>(isa, row);
        for (out, &value) in out.iter_mut().zip(&transformed).take(V::OUT) {
            let scaled = if V::INVERSE == 1 { value } else { isa.scale(value, V::INVERSE) };
            let shifted = isa.sub(scaled, centre);
            let y = isa.shift_right(shifted, V::SHIFT);
            *out = isa.add(y, bias);
        }
    }
    out
}

/// `Aᵀ m`.
#[inline(always)]
fn output_vector<I: Int8, V: Variant>(isa: I, m: [I::Acc; 6]) -> [I::Acc; 4] {
    let mut out = [isa.zero(); 4];
    for (out, row) in out.iter_mut().zip(&V::AT).take(V::OUT) {
        let mut sum = isa.zero();
        for (&k, &m) in row.iter().zip(&m).take(V::TILE) {
            sum = match k {
                0 => sum,
                1 => isa.add(sum, m),
                -1 => isa.sub(sum, m),
                k if k < 0 => isa.sub(sum, isa.scale(m, -k)),
                k => isa.add(sum, isa.scale(m, k)),
            };
        }
        *out = sum;
    }
    out
}
