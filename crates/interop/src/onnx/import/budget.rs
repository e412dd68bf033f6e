//! How much memory a file may ask for.

use super::super::attributes::Check;

/// Numbers that may be made of each one in the file. A constant that many nodes read becomes each
/// layer's own: without a limit, a small file could ask for any amount of memory.
const MAX_SHARE: usize = 64;
/// Numbers that may be made of any file's.
const FREE_NUMBERS: usize = 1 << 24;

/// The numbers of a file, and those that are made of them.
#[derive(Default)]
pub(super) struct Budget {
    read: usize,
    made: usize,
}

impl Budget {
    /// So many numbers are in the file.
    pub(super) fn read(&mut self, numbers: usize) {
        self.read = self.read.saturating_add(numbers);
    }

    /// So many are about to be made of them.
    pub(super) fn make(&mut self, numbers: usize) -> Check<()> {
        self.made = self.made.saturating_add(numbers);
        match self.made <= self.read.saturating_mul(MAX_SHARE).max(FREE_NUMBERS) {
            true => Ok(()),
            false => Err(format!(
                "its layers share weights more than {MAX_SHARE} times over; each has its own here"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_may_have_more() {
        let mut budget = Budget::default();
        assert!(budget.make(FREE_NUMBERS).is_ok());
        assert!(budget.make(1).is_err());
        budget.read(FREE_NUMBERS);
        assert!(budget.make((MAX_SHARE - 1) * FREE_NUMBERS - 1).is_ok());
        assert!(budget.make(1).is_err());
        assert!(budget.make(usize::MAX).is_err());
    }
}
