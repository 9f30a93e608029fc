//! Lines of ours in a file of others: at its end, between two marks, so that they can be told apart and cut
//! out whatever becomes of the rest.

const BEGIN: &str = "# podmotion begin: written and removed by podmotion-installer";
const END: &str = "# podmotion end";

/// The text with our lines at its end, in place of any that were there. Ends the last line of the others.
pub fn put(text: &str, ours: &str) -> String {
    let mut text = cut(text);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    format!("{text}{BEGIN}\n{ours}{END}\n")
}

/// The text without our lines.
pub fn cut(text: &str) -> String {
    let mut rest = String::with_capacity(text.len());
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        match line.trim() {
            BEGIN => inside = true,
            END if inside => inside = false,
            _ if inside => {}
            _ => rest.push_str(line),
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_put_at_the_end_once_and_cut_out() {
        let theirs = "# a comment\nversion = 2\n";
        let both = put(theirs, "ours = 1\n");
        assert!(both.starts_with(theirs) && both.ends_with("ours = 1\n# podmotion end\n"));
        assert_eq!(put(&both, "ours = 1\n"), both);
        assert_eq!(cut(&both), theirs);
        let more = format!("{both}[debug]\n");
        assert_eq!(cut(&more), format!("{theirs}[debug]\n"));
        assert_eq!(cut("# podmotion end\n"), "# podmotion end\n");
        assert_eq!(cut(&put("a = 1", "b = 2\n")), "a = 1\n");
        assert_eq!(put("", "b = 2\n"), format!("{BEGIN}\nb = 2\n{END}\n"));
    }
}
