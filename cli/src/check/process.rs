//! The process that the self-test puts to sleep: it holds a counter and a block of memory, and tells both for
//! each line that it reads.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, Write};

use anyhow::Result;

use crate::exit::Exit;

const BLOCK: usize = 1 << 20;

/// Answers lines until its input ends.
///
/// # Errors
/// When it cannot read or answer.
pub fn run() -> Result<Exit> {
    let block = block();
    let mut out = io::stdout().lock();
    for (before, line) in io::stdin().lock().lines().enumerate() {
        line?;
        writeln!(out, "{}", answer(before + 1, digest(&block)))?;
        out.flush()?;
    }
    Ok(Exit::Done)
}

/// What it says to line `count`, from 1, as long as its memory is as it was.
pub fn expected(count: usize) -> String {
    answer(count, digest(&block()))
}

fn answer(count: usize, digest: u64) -> String {
    format!("{count} {digest:016x}")
}

/// No two pages are the same.
fn block() -> Vec<u8> {
    let words = (0..BLOCK as u64 / 8).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

fn digest(block: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    block.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_changes_the_answer() {
        let mut block = block();
        assert_eq!(answer(2, digest(&block)), expected(2));
        block[BLOCK / 2] ^= 1;
        assert_ne!(answer(2, digest(&block)), expected(2));
    }
}
