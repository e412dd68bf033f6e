use std::array;

use ottava_autograd::{Gradients, Leaf};
use ottava_tensor::{Level, Tensor, parallel};

use crate::module::join;
use crate::{Error, Result, state_dict};

/// Parameters and what an optimizer remembers of each.
pub(super) struct Slots {
    /// The names of the moments, PyTorch's.
    kinds: &'static [&'static str],
    slots: Vec<Slot>,
}

struct Slot {
    name: String,
    leaf: Leaf,
    weight_decay: f32,
    /// Steps taken.
    steps: u32,
    /// Of the parameter's shape, row-major; one of each kind.
    moments: Vec<Tensor<f32>>,
}

/// A piece of a parameter, of its moments and of its gradient.
struct Piece<'a, const K: usize> {
    weight: &'a mut [f32],
    moments: [&'a mut [f32]; K],
    gradient: &'a [f32],
}

impl Slots {
    /// Room for the moments `kinds` of each parameter. A parameter known by two names moves once.
    pub(super) fn new(
        kinds: &'static [&'static str],
        parameters: Vec<(String, Leaf)>,
        weight_decay: impl Fn(&str, &Leaf) -> f32,
    ) -> Self {
        let mut slots: Vec<Slot> = Vec::with_capacity(parameters.len());
        for (name, leaf) in parameters {
            if slots.iter().any(|slot| slot.leaf.is(&leaf)) {
                continue;
            }
            let moments = vec![Tensor::zeros(leaf.get().shape()); kinds.len()];
            let weight_decay = weight_decay(&name, &leaf);
            slots.push(Slot { name, leaf, weight_decay, steps: 0, moments });
        }
        Self { kinds, slots }
    }

    /// Steps every parameter that has a gradient. `rule(weight_decay, step)`, `step` counting from 1,
    /// turns a weight, its gradient and its `K` moments into the new weight and moments.
    pub(super) fn step<const K: usize, R>(
        &mut self,
        gradients: &Gradients,
        rule: impl Fn(f32, u32) -> R,
    ) -> Result<()>
    where
        R: Fn(f32, f32, [f32; K]) -> (f32, [f32; K]) + Sync + Send,
    {
        let mut moving = Vec::with_capacity(self.slots.len());
        for slot in &mut self.slots {
            let Some(gradient) = gradients.get(&slot.leaf) else { continue };
            let (shape, moments) = (slot.leaf.get().shape().to_vec(), &slot.moments);
            if shape != gradient.shape() || moments.iter().any(|moment| moment.shape() != shape) {
                let (name, found) = (&slot.name, gradient.shape());
                let reason = format!("`{name}` has shape {shape:?}, but its gradient {found:?}");
                return Err(Error::Config { reason });
            }
            moving.push((slot, gradient.contiguous()));
        }
        let leaves: Vec<Leaf> = moving.iter().map(|(slot, _)| slot.leaf.clone()).collect();
        // One pass over all parameters: small ones, of which there are many, are no tasks of their own.
        Leaf::update_all(&leaves, |weights| {
            let mut pieces: Vec<(Piece<K>, R)> = Vec::new();
            for (weight, (slot, gradient)) in weights.iter_mut().zip(&mut moving) {
                if !weight.is_contiguous() {
                    **weight = weight.contiguous();
                }
                slot.steps = slot.steps.saturating_add(1);
                let moments =
                    slot.moments.first_chunk_mut::<K>().expect("as many kinds as the rule has");
                let gradient = gradient.as_slice().expect("contiguous");
                let cut = cut(weight.data_mut(), moments, gradient);
                pieces.extend(cut.map(|piece| (piece, rule(slot.weight_decay, slot.steps))));
            }
            let level = Level::current();
            parallel::for_each_item(pieces, |_, (piece, rule)| {
                level.vectorize(
                    #[inline(always)]
                    || piece.step(rule),
                );
            });
        });
        Ok(())
    }

    /// Everything remembered, by name.
    pub(super) fn state(&self) -> Vec<(String, Tensor<f32>)> {
        let mut state = Vec::new();
        for slot in &self.slots {
            // Exact to 2²⁴ steps, where Adam's bias correction has long been one.
            state.push((join(&slot.name, "step"), Tensor::scalar(slot.steps as f32)));
            for (kind, moment) in self.kinds.iter().zip(&slot.moments) {
                state.push((join(&slot.name, kind), moment.clone()));
            }
        }
        state
    }

    /// Remembers a [`state`](Self::state).
    pub(super) fn load_state(&mut self, state: Vec<(String, Tensor<f32>)>) -> Result<()> {
        let targets: Vec<(String, Leaf)> =
            self.state().into_iter().map(|(name, value)| (name, Leaf::buffer(value))).collect();
        state_dict::load("optimizer", targets.clone(), state)?;
        let mut values = targets.into_iter().map(|(_, leaf)| leaf.get());
        for slot in &mut self.slots {
            let mut next = || values.next().expect("one value for each that `state` lists");
            slot.steps = next().item()? as u32;
            slot.moments.iter_mut().for_each(|moment| *moment = next().contiguous());
        }
        Ok(())
    }
}

/// The pieces of a parameter.
fn cut<'a, const K: usize>(
    weight: &'a mut [f32],
    moments: &'a mut [Tensor<f32>; K],
    gradient: &'a [f32],
) -> impl Iterator<Item = Piece<'a, K>> {
    let mut moments =
        moments.each_mut().map(|moment| moment.data_mut().chunks_mut(parallel::CHUNK));
    let pairs = weight.chunks_mut(parallel::CHUNK).zip(gradient.chunks(parallel::CHUNK));
    pairs.map(move |(weight, gradient)| Piece {
        weight,
        moments: array::from_fn(|k| moments[k].next().expect("as long as the weight")),
        gradient,
    })
}

impl<const K: usize> Piece<'_, K> {
    #[inline(always)]
    fn step(mut self, rule: impl Fn(f32, f32, [f32; K]) -> (f32, [f32; K])) {
        let len = self.gradient.len();
        let (weight, gradient) = (&mut self.weight[..len], &self.gradient[..len]);
        let mut moments = self.moments.each_mut().map(|moment| &mut moment[..len]);
        for i in 0..len {
            let (moved, remembered) =
                rule(weight[i], gradient[i], array::from_fn(|k| moments[k][i]));
            weight[i] = moved;
            for (moment, value) in moments.iter_mut().zip(remembered) {
                moment[i] = value;
            }
        }
    }
}
