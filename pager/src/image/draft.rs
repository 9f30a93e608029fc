//! Content that is written before the processes stand still: whether it is still theirs then is not known yet.
//!
//! ```text
//!   Pages --lend--> Draft     slots that nobody else is given for as long as there is the draft
//!                     |       content is written to some of them
//!   Pages <-accept----+       of those, the ones that hold what the processes have when they stand still
//! ```
//!
//! What is not accepted is free again once the draft is gone.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

use super::store::Pages;

/// Slots that were lent, for as long as they are.
#[derive(Debug, Default)]
pub(super) struct Lent {
    slots: Vec<Range<u64>>,
    /// Gone with the draft.
    draft: Weak<()>,
}

impl Lent {
    /// What is lent still.
    pub(super) fn slots(&self) -> &[Range<u64>] {
        match self.is_out() {
            true => &self.slots,
            false => &[],
        }
    }

    /// What was lent and is not any more, the first time that it is asked for.
    pub(super) fn returned(&mut self) -> Vec<Range<u64>> {
        match self.is_out() {
            true => Vec::new(),
            false => std::mem::take(&mut self.slots),
        }
    }

    /// This one belongs to an image.
    pub(super) fn accept(&mut self, slot: u64) {
        let Some(at) = self.slots.iter().position(|slots| slots.contains(&slot)) else {
            return;
        };
        let slots = self.slots[at].clone();
        let rest = [slots.start..slot, slot + 1..slots.end];
        let rest = rest.into_iter().filter(|slots| !slots.is_empty());
        self.slots.splice(at..=at, rest);
    }

    fn is_out(&self) -> bool {
        self.draft.strong_count() > 0
    }
}

/// Slots to write to.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    page: u64,
    /// Not written to yet.
    slots: Vec<Range<u64>>,
    _lent: Arc<()>,
}

impl Pages {
    /// Lends `count` slots. None while others are lent.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub(crate) fn lend(&mut self, count: usize) -> io::Result<Option<Draft>> {
        if self.lent.is_out() {
            return Ok(None);
        }
        let file = self.file().try_clone()?;
        let lent = Arc::new(());
        let slots = self.take(&vec![0; count]);
        self.lent = Lent {
            slots: slots.clone(),
            draft: Arc::downgrade(&lent),
        };
        Ok(Some(Draft {
            file,
            page: self.page(),
            slots,
            _lent: lent,
        }))
    }
}

impl Draft {
    /// Writes the content of a page. Returns its slot; none when all slots are written to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&mut self, content: &[u8]) -> io::Result<Option<u64>> {
        let Some(slots) = self.slots.first_mut() else {
            return Ok(None);
        };
        let slot = slots.start;
        self.file.write_all_at(content, slot * self.page)?;
        slots.start += 1;
        if slots.is_empty() {
            self.slots.remove(0);
        }
        Ok(Some(slot))
    }
}
