//! Real processes whose memory leaves and comes back. Needs root.

mod busy;
mod cage;
mod compress;
mod corrupt;
mod facts;
mod holder;
mod kill;
mod overtaken;
mod refused;
mod torture;
mod victim;
mod watch;

use libtest_mimic::{Arguments, Failed, Trial};

type Case = (&'static str, fn());

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, word, image, cage] = &words[..]
        && word == kill::FILLER
    {
        kill::filler(image.as_ref(), cage.as_ref());
    }
    let mut arguments = Arguments::from_args();
    // Each looks at processes and descriptors of this one.
    arguments.test_threads.get_or_insert(1);
    let skip = std::env::var_os("PODMOTION_SKIP_ROOT").is_some_and(|value| value == "1");
    let root = std::fs::metadata("/proc/self")
        .is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let cases = [
        facts::CASES,
        busy::CASES,
        refused::CASES,
        compress::CASES,
        watch::CASES,
        overtaken::CASES,
        corrupt::CASES,
        torture::CASES,
        kill::CASES,
    ];
    let trials = cases
        .into_iter()
        .flatten()
        .map(|&(name, case)| {
            let run = move || {
                if !root {
                    return Err(Failed::from("needs root"));
                }
                case();
                Ok(())
            };
            Trial::test(format!("pager::{name}"), run).with_ignored_flag(skip && !root)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
