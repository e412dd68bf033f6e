use crate::plan::{ALIGN, Front, Plan};
use crate::{Error, Result};

/// The memory that running needs: the arena with every value, and room for the kernels. It is planned
/// on the first run of an engine on a batch size; later ones of the same size allocate nothing. It
/// grows with the batch only as far as the images that run at a time: a few megabytes.
#[derive(Default)]
pub struct Workspace {
    plan: Option<Planned>,
    arena: Vec<u8>,
    scratch: Vec<u8>,
}

struct Planned {
    of: Key,
    plan: Plan,
}

/// What the memory is for: an engine, a batch, how its first steps run, and so many threads, each of
/// which needs room of its own.
pub(crate) type Key = (u64, usize, Front, usize);

/// What a run works with.
pub(crate) struct Memory<'a> {
    pub plan: &'a Plan,
    pub arena: &'a mut [u8],
    pub scratch: &'a mut [u8],
}

impl Workspace {
    /// Memory for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory for a run, planned anew if the last was another.
    pub(crate) fn prepare(
        &mut self,
        of: Key,
        plan: impl FnOnce() -> Result<Plan>,
        scratch: impl FnOnce() -> usize,
    ) -> Result<Memory<'_>> {
        let Self { plan: last, arena, scratch: room } = self;
        let planned = match last.take() {
            Some(last) if last.of == of => last,
            _ => {
                let (plan, batch) = (plan()?, of.1);
                grow(arena, plan.arena, batch)?;
                grow(room, scratch(), batch)?;
                Planned { of, plan }
            }
        };
        let Planned { plan, .. } = last.insert(planned);
        Ok(Memory { plan, arena: aligned(arena), scratch: aligned(room) })
    }
}

/// Makes room for `len` aligned bytes.
fn grow(bytes: &mut Vec<u8>, len: usize, batch: usize) -> Result<()> {
    let len = len + ALIGN;
    if bytes.len() < len {
        bytes.clear();
        bytes.try_reserve_exact(len).map_err(|_| Error::Batch { batch })?;
        bytes.resize(len, 0);
    }
    Ok(())
}

/// The bytes from the first aligned one on.
pub(crate) fn aligned(bytes: &mut [u8]) -> &mut [u8] {
    let skip = bytes.as_ptr().align_offset(ALIGN);
    &mut bytes[skip..]
}
