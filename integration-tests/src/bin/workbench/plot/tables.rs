//! Tables for pages, in Markdown.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Figures, SLEEPS, WAKES, Way};
use crate::numbers::plain;

const BEGIN: &str = "<!-- bench: ";
const END: &str = "<!-- bench end -->";

/// A page with its tables made new.
pub(super) fn put(page: &str, figures: &Figures<'_>) -> Result<String> {
    let mut made = String::new();
    let mut rest = page;
    while let Some(at) = rest.find(BEGIN) {
        let (before, mark) = rest.split_at(at);
        let (mark, old) = mark
            .split_once(" -->\n")
            .with_context(|| format!("a mark that is not closed: {BEGIN}"))?;
        let name = mark.strip_prefix(BEGIN).unwrap_or_default();
        let (_, after) = old
            .split_once(END)
            .with_context(|| format!("no {END} after {mark}"))?;
        let table = match name {
            "wake" => times("wake, SYN to first byte", WAKES, figures),
            "sleep" => times("sleep, decision to memory free", SLEEPS, figures),
            "others" => others(figures),
            "machine" => machine(figures),
            _ => bail!("no table is called {name:?}"),
        };
        write!(made, "{before}{mark} -->\n{table}{END}")?;
        rest = after;
    }
    Ok(made + rest)
}

/// A line for each way, a column for each size.
fn times(what: &str, ways: &[Way], figures: &Figures<'_>) -> String {
    let sizes = figures.sizes();
    let mut table = format!("| {what}, ms, p50 / p99 |");
    for mb in &sizes {
        table += &format!(" {} MB |", plain(f64::from(*mb)));
    }
    table += "\n|---|";
    table += &"---|".repeat(sizes.len());
    table.push('\n');
    for way in ways {
        // Not all of them are measured in every run.
        if sizes.iter().all(|&mb| way.times(figures, mb).is_none()) {
            continue;
        }
        table += &format!("| {} |", way.name);
        for &mb in &sizes {
            let time = way.times(figures, mb).map_or_else(String::new, both);
            table += &format!(" {time} |");
        }
        table.push('\n');
    }
    table
}

/// All but the times of sleeps and wakes, with what each is compared with.
fn others(figures: &Figures<'_>) -> String {
    let mut table = "| | | p50 / p99 | beside it | |\n|---|---|---|---|---|\n".to_owned();
    let sizes: Vec<_> = figures
        .sizes()
        .into_iter()
        .map(|mb| format!("{mb} MB, "))
        .collect();
    for figure in figures.all {
        let name = figure["name"].as_str().unwrap_or_default();
        let of_a_size = sizes.iter().any(|size| name.trim_start().starts_with(size));
        if of_a_size {
            continue;
        }
        let beside = &figure["beside"];
        let compared = match beside["what"].as_str() {
            Some(_) => both(&beside["figures"]),
            None => String::new(),
        };
        table += &format!(
            "| {}{} | {} | {} | {compared} | {} |\n",
            // Part of what stands above it.
            if name.starts_with(' ') { "… " } else { "" },
            name.trim_start(),
            figure["unit"].as_str().unwrap_or_default(),
            both(&figure["ours"]),
            beside["what"].as_str().unwrap_or_default(),
        );
    }
    table
}

fn machine(figures: &Figures<'_>) -> String {
    let machine = figures.machine;
    let text = |key: &str| machine[key].as_str().unwrap_or_default();
    format!(
        "{}, {} cores, kernel {}, {}, CRIU {}.\n",
        text("cpu"),
        machine["cores"],
        text("kernel"),
        text("versions").replace(',', ", "),
        text("criu"),
    )
}

/// `p50 / p99`, or one figure where there is one.
fn both(samples: &Value) -> String {
    let number = |key: &str| samples[key].as_f64().map(plain).unwrap_or_default();
    match samples["count"].as_u64() {
        Some(1) => number("p50"),
        _ => format!("{} / {}", number("p50"), number("p99")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run() -> Value {
        let times = |p50: f64, count: u32| json!({"p50": p50, "p99": p50 * 2.0, "count": count});
        json!({"figures": [
            {
                "name": "50 MB, light wake, SYN to first byte", "unit": "ms",
                "ours": times(4.0, 10), "beside": null,
            },
            {
                "name": "50 MB, deep wake, SYN to first byte", "unit": "ms",
                "ours": times(60.0, 10),
                "beside": {"what": "runc", "figures": times(200.0, 10)},
            },
            {"name": "shim", "unit": "MB", "ours": times(0.5, 1), "beside": null},
        ]})
    }

    #[test]
    fn a_table_is_made_new_and_the_page_stays() {
        let run = run();
        let figures = Figures::of(&run).unwrap();
        let page = "a\n<!-- bench: wake -->\nold\n<!-- bench end -->\nb\n\
                    <!-- bench: others -->\n<!-- bench end -->";
        let made = put(page, &figures).unwrap();
        assert_eq!(
            made,
            "a\n<!-- bench: wake -->\n\
             | wake, SYN to first byte, ms, p50 / p99 | 50 MB |\n|---|---|\n\
             | light | 4.0 / 8.0 |\n| deep | 60 / 120 |\n\
             | runc restore | 200 / 400 |\n<!-- bench end -->\nb\n\
             <!-- bench: others -->\n| | | p50 / p99 | beside it | |\n|---|---|---|---|---|\n\
             | shim | MB | 0.50 |  |  |\n<!-- bench end -->"
        );
        assert_eq!(put(&made, &figures).unwrap(), made);
    }

    #[test]
    fn a_mark_that_means_nothing_is_an_error() {
        let run = run();
        let figures = Figures::of(&run).unwrap();
        assert!(put("<!-- bench: x -->\n<!-- bench end -->", &figures).is_err());
        assert!(put("<!-- bench: wake -->\n", &figures).is_err());
    }
}
