//! Where each value of a program lies while it runs: one arena, places shared by values that never
//! live at the same time.
//!
//! Each step's output gets a buffer, or shares its input's (a view; or in place, if the input is not
//! needed afterwards). Buffers are placed largest first, each at the lowest offset that is free for as
//! long as it lives: the *greedy by size* of Pisarchyk and Lee 2020 (arXiv:2001.03288), within a few
//! percent of the lower bound on ResNets.
//!
//! The first steps may run for some images of a batch at a time ([`Front`]). What only they need then has
//! room for so many images; what they leave for later steps has room for all, from the first step on.

use std::ops::Range;

use crate::{Error, Result};

/// Every place begins at a multiple of this: a cache line, and the widest vector.
pub(crate) const ALIGN: usize = 64;

/// A plan beyond this is refused, and no sum below overflows.
pub(crate) const MAX_BYTES: usize = isize::MAX as usize >> 2;

/// How a step may share memory between its first input and its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Not at all.
    None,
    /// The output is the input's bytes.
    View,
    /// The output may overwrite the input, if nobody reads it afterwards.
    InPlace,
}

/// What planning has to know of a step.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    pub inputs: Vec<usize>,
    pub output: usize,
    pub sharing: Sharing,
}

/// The first steps of a program, when they run for some images before they run for the next: what
/// they make of an image then stays in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Front {
    /// How many steps.
    pub steps: usize,
    /// Images at a time.
    pub images: usize,
}

impl Front {
    /// All steps run for all images.
    pub(crate) const NONE: Self = Self { steps: 0, images: usize::MAX };

    /// The front, if a batch of this size passes it in more than one go.
    fn of(self, batch: usize) -> Option<Self> {
        (self.steps > 0 && self.images < batch).then_some(self)
    }
}

/// Places for a batch, and for any smaller one.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    places: Vec<ValuePlace>,
    /// Bytes in all.
    pub arena: usize,
}

/// Where a value begins.
#[derive(Clone, Copy, Debug)]
struct ValuePlace {
    offset: usize,
    /// Bytes for an image; none for the input, which has no place.
    bytes: usize,
    /// Whether there is room for the images of the front only, which follow each other here.
    passing: bool,
}

#[derive(Clone, Copy, Debug)]
struct Buffer {
    size: usize,
    passing: bool,
    first: usize,
    last: usize,
    offset: usize,
}

impl Plan {
    /// Plans `steps` over values of `bytes` bytes for an image, for a batch. The value `output`
    /// outlives the last step.
    pub(crate) fn new(
        steps: &[Use],
        bytes: &[usize],
        output: usize,
        batch: usize,
        front: Front,
    ) -> Result<Self> {
        let passing = match front.of(batch) {
            Some(front) => passing(steps, bytes.len(), output, front.steps),
            None => vec![false; bytes.len()],
        };
        let images = |value: usize| if passing[value] { front.images } else { batch };
        let sizes: Vec<usize> = bytes
            .iter()
            .enumerate()
            .map(|(value, bytes)| bytes.checked_mul(images(value)).filter(|&n| n <= MAX_BYTES))
            .collect::<Option<_>>()
            .ok_or(Error::Batch { batch })?;
        let (mut buffers, buffer_of) = share(steps, &sizes, &passing, output);
        if let Some(front) = front.of(batch) {
            // What outlives the front is written while the front runs again.
            for buffer in buffers.iter_mut().filter(|b| !b.passing && b.first < front.steps) {
                buffer.first = 0;
            }
        }
        let arena = place(&mut buffers).ok_or(Error::Batch { batch })?;
        let places = buffer_of.iter().zip(bytes).map(|(&buffer, &bytes)| match buffer {
            Some(b) => {
                let Buffer { offset, passing, .. } = buffers[b];
                ValuePlace { offset, bytes, passing }
            }
            None => ValuePlace { offset: 0, bytes: 0, passing: false },
        });
        Ok(Self { places: places.collect(), arena })
    }

    /// The place of some images of a value: of those that a step runs for.
    pub(crate) fn place(&self, value: usize, images: Range<usize>) -> Range<usize> {
        let ValuePlace { offset, bytes, passing } = self.places[value];
        let first = if passing { 0 } else { images.start };
        offset + bytes * first..offset + bytes * (first + images.len())
    }
}

/// Which values nobody needs once the front's steps are through with an image.
fn passing(steps: &[Use], values: usize, output: usize, front: usize) -> Vec<bool> {
    let mut passing = vec![false; values];
    steps[..front].iter().for_each(|step| passing[step.output] = true);
    passing[output] = false;
    for step in &steps[front..] {
        step.inputs.iter().for_each(|&input| passing[input] = false);
    }
    // A view is its input's bytes.
    for step in steps[..front].iter().rev().filter(|step| step.sharing == Sharing::View) {
        passing[step.inputs[0]] &= passing[step.output];
    }
    for step in steps[..front].iter().filter(|step| step.sharing == Sharing::View) {
        passing[step.output] = passing[step.inputs[0]];
    }
    passing
}

/// Gives each value a buffer, and each buffer its first and last step.
fn share(
    steps: &[Use],
    sizes: &[usize],
    passing: &[bool],
    output: usize,
) -> (Vec<Buffer>, Vec<Option<usize>>) {
    let mut last_use = vec![0; sizes.len()];
    for (step, Use { inputs, output, .. }) in steps.iter().enumerate() {
        last_use[*output] = step;
        inputs.iter().for_each(|&input| last_use[input] = step);
    }
    last_use[output] = steps.len();

    let mut buffers: Vec<Buffer> = vec![];
    let mut buffer_of = vec![None; sizes.len()];
    for (step, Use { inputs, output, sharing }) in steps.iter().enumerate() {
        // A view read later has moved its buffer's last step, so `last == step` means that nobody
        // reads these bytes afterwards.
        let of_first = inputs.first().and_then(|&input| buffer_of[input]);
        let shared = of_first.filter(|&b: &usize| match sharing {
            Sharing::None => false,
            Sharing::View => true,
            Sharing::InPlace => {
                buffers[b].last == step
                    && buffers[b].size == sizes[*output]
                    && buffers[b].passing == passing[*output]
                    && inputs[1..].iter().all(|&other| buffer_of[other] != Some(b))
            }
        });
        let buffer = shared.unwrap_or_else(|| {
            let (size, passing) = (sizes[*output], passing[*output]);
            buffers.push(Buffer { size, passing, first: step, last: step, offset: 0 });
            buffers.len() - 1
        });
        buffers[buffer].last = buffers[buffer].last.max(last_use[*output]);
        buffer_of[*output] = Some(buffer);
    }
    (buffers, buffer_of)
}

/// Gives each buffer its offset; the bytes needed, `None` if they overflow.
fn place(buffers: &mut [Buffer]) -> Option<usize> {
    let mut order = Vec::from_iter(0..buffers.len());
    order.sort_by_key(|&b| std::cmp::Reverse(buffers[b].size));
    let mut placed: Vec<Buffer> = vec![]; // by offset
    let mut arena = 0;
    for b in order {
        let buffer = buffers[b];
        let size = buffer.size.next_multiple_of(ALIGN);
        let mut offset = 0usize;
        for other in placed.iter().filter(|o| o.first <= buffer.last && buffer.first <= o.last) {
            if offset + size <= other.offset {
                break;
            }
            offset = offset.max(other.offset + other.size.next_multiple_of(ALIGN));
        }
        let end = offset.checked_add(size).filter(|&end| end <= MAX_BYTES)?;
        arena = arena.max(end);
        buffers[b].offset = offset;
        let at = placed.partition_point(|o| o.offset <= offset);
        placed.insert(at, buffers[b]);
    }
    Some(arena)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step(inputs: &[usize], output: usize, sharing: Sharing) -> Use {
        Use { inputs: inputs.to_vec(), output, sharing }
    }

    #[test]
    fn a_chain_needs_its_two_largest_neighbours() {
        let steps: Vec<Use> = (0..6).map(|i| step(&[i], i + 1, Sharing::None)).collect();
        let plan = Plan::new(&steps, &[0, 640, 64, 128, 320, 64, 64], 6, 1, Front::NONE).unwrap();
        assert_eq!(plan.arena, 640 + 64);
        let of = |front| Plan::new(&steps, &[0, 640, 64, 128, 320, 64, 64], 6, 3, front).unwrap();
        assert_eq!(of(Front::NONE).arena, 3 * 704);
        // The first two values are there for one image: the third and the fourth need most.
        assert_eq!(of(Front { steps: 3, images: 1 }).arena, 3 * (128 + 320));
    }

    #[test]
    fn the_last_reader_writes_in_place_and_an_earlier_one_does_not() {
        // 1 → relu → 2 (1 is read again by the add) → 3 = add(2, 1), over 2.
        let steps = [
            step(&[0], 1, Sharing::None),
            step(&[1], 2, Sharing::InPlace),
            step(&[2, 1], 3, Sharing::InPlace),
            step(&[3], 4, Sharing::View),
        ];
        let plan = Plan::new(&steps, &[0, 64, 64, 64, 64], 4, 1, Front::NONE).unwrap();
        assert_ne!(plan.place(1, 0..1), plan.place(2, 0..1));
        assert_eq!(plan.place(2, 0..1), plan.place(3, 0..1));
        assert_eq!(plan.place(3, 0..1), plan.place(4, 0..1));
        assert_eq!(plan.arena, 128);
    }

    #[test]
    fn a_value_added_to_itself_is_not_overwritten() {
        let steps = [step(&[0], 1, Sharing::None), step(&[1, 1], 2, Sharing::InPlace)];
        let plan = Plan::new(&steps, &[0, 64, 64], 2, 1, Front::NONE).unwrap();
        assert_ne!(plan.place(1, 0..1), plan.place(2, 0..1));
    }

    #[test]
    fn a_batch_beyond_memory_is_refused() {
        let steps = [step(&[0], 1, Sharing::None)];
        let error = Plan::new(&steps, &[0, 1 << 20], 1, 1 << 60, Front::NONE).unwrap_err();
        assert_eq!(error, Error::Batch { batch: 1 << 60 });
    }

    proptest! {
        /// Replays a random program on tagged bytes: every read finds what was written.
        #[test]
        fn nobody_reads_overwritten_bytes(
            nodes in prop::collection::vec((any::<u16>(), any::<u16>(), 0..4, 1usize..300), 1..24),
            (batch, images, front) in (1..6usize, 1..4usize, 0..26usize),
        ) {
            let mut sizes = vec![0, 100];
            let mut steps = vec![step(&[0], 1, Sharing::None)];
            for (a, b, kind, size) in nodes {
                let pick = |r: u16| 1 + r as usize % (sizes.len() - 1);
                let (a, b) = (pick(a), pick(b));
                let output = sizes.len();
                let (inputs, sharing, size) = match kind {
                    0 => (vec![a], Sharing::None, size),
                    1 => (vec![a], Sharing::View, sizes[a]),
                    2 => (vec![a], Sharing::InPlace, sizes[a]),
                    _ => (vec![a, b], Sharing::InPlace, sizes[a]),
                };
                steps.push(step(&inputs, output, sharing));
                sizes.push(size);
            }
            let output = sizes.len() - 1;
            let front = Front { steps: front.min(steps.len()), images };
            let plan = Plan::new(&steps, &sizes, output, batch, front).unwrap();
            // `tags[v]` is what the bytes of value v hold: a view holds its input's tag. An image has
            // tags of its own.
            let mut tags = vec![0; sizes.len()];
            let mut arena = vec![0; plan.arena];
            let tag = |tag: usize, image: usize| (tag + 30 * image) as u8;
            let mut run = |step: &Use, images: std::ops::Range<usize>| {
                for &input in step.inputs.iter().filter(|&&input| input != 0) {
                    for image in images.clone() {
                        let place = plan.place(input, images.clone());
                        let first = place.start + (image - images.start) * sizes[input];
                        let bytes = &arena[first..first + sizes[input]];
                        prop_assert!(bytes.iter().all(|&byte| byte == tag(tags[input], image)));
                    }
                }
                tags[step.output] = match step.sharing {
                    Sharing::View => tags[step.inputs[0]],
                    Sharing::None | Sharing::InPlace => step.output,
                };
                for image in images.clone() {
                    let place = plan.place(step.output, images.clone());
                    let first = place.start + (image - images.start) * sizes[step.output];
                    arena[first..first + sizes[step.output]].fill(tag(tags[step.output], image));
                }
                Ok(())
            };
            for first in (0..batch).step_by(front.images) {
                for step in &steps[..front.steps] {
                    run(step, first..batch.min(first + front.images))?;
                }
            }
            for step in &steps[front.steps..] {
                run(step, 0..batch)?;
            }
            for image in 0..batch {
                let bytes = &arena[plan.place(output, image..image + 1)];
                prop_assert!(bytes.iter().all(|&byte| byte == tag(tags[output], image)));
            }
        }
    }
}
