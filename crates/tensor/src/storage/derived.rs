//! What is derived from a storage's elements, packed weights for example, kept while nobody writes them.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Level;

/// What is derived, for which kernels and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) what: &'static str,
    pub(crate) level: Level,
    pub(crate) shape: Vec<usize>,
}

/// The last thing derived. It is kept when it is asked for a second time: training asks once and then
/// writes, inference asks for ever.
#[derive(Default)]
pub(crate) struct Derived(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Nothing,
    Asked(Key),
    Kept(Key, Arc<dyn Any + Send + Sync>),
}

impl Derived {
    /// What was kept, or what `make` makes.
    pub(super) fn get<R: Send + Sync + 'static>(
        &self,
        key: Key,
        make: impl FnOnce() -> R,
    ) -> Arc<R> {
        let keep = match &*self.lock() {
            State::Kept(kept, value) if *kept == key => {
                if let Ok(value) = Arc::clone(value).downcast() {
                    return value;
                }
                true
            }
            State::Asked(asked) => *asked == key,
            State::Nothing | State::Kept(..) => false,
        };
        // Without the lock: others may make the same meanwhile.
        let value = Arc::new(make());
        *self.lock() =
            if keep { State::Kept(key, Arc::<R>::clone(&value)) } else { State::Asked(key) };
        value
    }

    /// The elements are about to be written.
    pub(super) fn forget(&mut self) {
        *self.0.get_mut().unwrap_or_else(PoisonError::into_inner) = State::Nothing;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is replaced as a whole, whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
