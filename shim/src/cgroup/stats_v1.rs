//! Statistics of cgroup version 1, one folder for each controller.

use std::fs;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use containerd_shim_protos::protobuf::MessageField;

use super::Cgroup;
use super::files::{Keyed, Nested, device, huge_page_sizes, number};

/// Nanoseconds of the clock tick that `cpuacct.stat` counts in: USER_HZ is 100 everywhere.
const TICK: u64 = 10_000_000;

/// Reads what there is.
pub fn read(cgroup: &Cgroup) -> Metrics {
    let of = |controller| cgroup.folder(controller).filter(|folder| folder.is_dir());
    Metrics {
        hugetlb: of("hugetlb").map(hugetlb).unwrap_or_default(),
        pids: of("pids").map(pids).into(),
        cpu: of("cpuacct")
            .map(|cpuacct| cpu(cpuacct, of("cpu").unwrap_or(cpuacct)))
            .into(),
        memory: of("memory").map(memory).into(),
        blkio: of("blkio").map(blkio).into(),
        rdma: of("rdma").map(rdma).into(),
        memory_oom_control: of("memory").map(oom_control).into(),
        ..Metrics::default()
    }
}

fn pids(folder: &Path) -> PidsStat {
    // Unlimited is 0 here.
    let limit = number(folder, "pids.max").filter(|&limit| limit != u64::MAX);
    PidsStat {
        current: number(folder, "pids.current").unwrap_or_default(),
        limit: limit.unwrap_or_default(),
        ..PidsStat::default()
    }
}

fn cpu(cpuacct: &Path, cpu: &Path) -> CPUStat {
    let ticks = Keyed::read(cpuacct, "cpuacct.stat");
    let throttle = Keyed::read(cpu, "cpu.stat");
    let per_cpu = fs::read_to_string(cpuacct.join("cpuacct.usage_percpu")).unwrap_or_default();
    CPUStat {
        usage: MessageField::some(CPUUsage {
            total: number(cpuacct, "cpuacct.usage").unwrap_or_default(),
            kernel: ticks.get("system") * TICK,
            user: ticks.get("user") * TICK,
            per_cpu: per_cpu
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect(),
            ..CPUUsage::default()
        }),
        throttling: MessageField::some(Throttle {
            periods: throttle.get("nr_periods"),
            throttled_periods: throttle.get("nr_throttled"),
            throttled_time: throttle.get("throttled_time"),
            ..Throttle::default()
        }),
        ..CPUStat::default()
    }
}

fn memory(folder: &Path) -> MemoryStat {
    let stat = Keyed::read(folder, "memory.stat");
    let entry = |module: &str| {
        let file = |name: &str| number(folder, &format!("memory.{module}{name}"));
        Some(MemoryEntry {
            usage: file("usage_in_bytes")?,
            limit: file("limit_in_bytes").unwrap_or_default(),
            max: file("max_usage_in_bytes").unwrap_or_default(),
            failcnt: file("failcnt").unwrap_or_default(),
            ..MemoryEntry::default()
        })
    };
    MemoryStat {
        cache: stat.get("cache"),
        rss: stat.get("rss"),
        rss_huge: stat.get("rss_huge"),
        mapped_file: stat.get("mapped_file"),
        dirty: stat.get("dirty"),
        writeback: stat.get("writeback"),
        pg_pg_in: stat.get("pgpgin"),
        pg_pg_out: stat.get("pgpgout"),
        pg_fault: stat.get("pgfault"),
        pg_maj_fault: stat.get("pgmajfault"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        hierarchical_memory_limit: stat.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat.get("hierarchical_memsw_limit"),
        total_cache: stat.get("total_cache"),
        total_rss: stat.get("total_rss"),
        total_rss_huge: stat.get("total_rss_huge"),
        total_mapped_file: stat.get("total_mapped_file"),
        total_dirty: stat.get("total_dirty"),
        total_writeback: stat.get("total_writeback"),
        total_pg_pg_in: stat.get("total_pgpgin"),
        total_pg_pg_out: stat.get("total_pgpgout"),
        total_pg_fault: stat.get("total_pgfault"),
        total_pg_maj_fault: stat.get("total_pgmajfault"),
        total_inactive_anon: stat.get("total_inactive_anon"),
        total_active_anon: stat.get("total_active_anon"),
        total_inactive_file: stat.get("total_inactive_file"),
        total_active_file: stat.get("total_active_file"),
        total_unevictable: stat.get("total_unevictable"),
        usage: entry("").into(),
        swap: entry("memsw.").into(),
        kernel: entry("kmem.").into(),
        kernel_tcp: entry("kmem.tcp.").into(),
        ..MemoryStat::default()
    }
}

fn oom_control(folder: &Path) -> MemoryOomControl {
    let control = Keyed::read(folder, "memory.oom_control");
    MemoryOomControl {
        oom_kill_disable: control.get("oom_kill_disable"),
        under_oom: control.get("under_oom"),
        oom_kill: control.get("oom_kill"),
        ..MemoryOomControl::default()
    }
}

fn blkio(folder: &Path) -> BlkIOStat {
    // Only the BFQ scheduler has files of its own; the throttling layer always counts.
    let entries = |bfq: &str, throttle: &str| {
        let text = |file: &str| fs::read_to_string(folder.join(format!("blkio.{file}")));
        let lines = text(bfq)
            .map(|text| blkio_entries(&text))
            .unwrap_or_default();
        if lines.is_empty() {
            text(throttle)
                .map(|text| blkio_entries(&text))
                .unwrap_or_default()
        } else {
            lines
        }
    };
    BlkIOStat {
        io_service_bytes_recursive: entries(
            "bfq.io_service_bytes_recursive",
            "throttle.io_service_bytes_recursive",
        ),
        io_serviced_recursive: entries(
            "bfq.io_serviced_recursive",
            "throttle.io_serviced_recursive",
        ),
        ..BlkIOStat::default()
    }
}

fn blkio_entries(text: &str) -> Vec<BlkIOEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = device(words.next()?)?;
        let (op, value) = (words.next()?, words.next()?);
        Some(BlkIOEntry {
            op: op.to_owned(),
            device: device_name(major, minor),
            major,
            minor,
            value: value.parse().ok()?,
            ..BlkIOEntry::default()
        })
    };
    text.lines().filter_map(entry).collect()
}

fn device_name(major: u64, minor: u64) -> String {
    let events = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let name = events.unwrap_or_default();
    let name = name.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map(|name| format!("/dev/{name}")).unwrap_or_default()
}

fn hugetlb(folder: &Path) -> Vec<HugetlbStat> {
    let read = |size: String| {
        let file = |name: &str| number(folder, &format!("hugetlb.{size}.{name}"));
        HugetlbStat {
            usage: file("usage_in_bytes").unwrap_or_default(),
            max: file("max_usage_in_bytes").unwrap_or_default(),
            failcnt: file("failcnt").unwrap_or_default(),
            pagesize: size,
            ..HugetlbStat::default()
        }
    };
    huge_page_sizes(folder, ".usage_in_bytes")
        .into_iter()
        .map(read)
        .collect()
}

fn rdma(folder: &Path) -> RdmaStat {
    let entries = |file: &str| {
        let entry = |line: Nested| RdmaEntry {
            hca_handles: u32::try_from(line.get("hca_handle")).unwrap_or(u32::MAX),
            hca_objects: u32::try_from(line.get("hca_object")).unwrap_or(u32::MAX),
            device: line.key,
            ..RdmaEntry::default()
        };
        Nested::read(folder, file).into_iter().map(entry).collect()
    };
    RdmaStat {
        current: entries("rdma.current"),
        limit: entries("rdma.max"),
        ..RdmaStat::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn folders_of_a_container() {
        let dir = tempfile::tempdir().unwrap();
        let mut folders = BTreeMap::new();
        for (controller, file, text) in [
            ("memory", "memory.stat", "rss 4096\ntotal_pgpgin 7\n"),
            ("memory", "memory.usage_in_bytes", "8192\n"),
            (
                "memory",
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
            ("cpuacct", "cpuacct.usage", "1234\n"),
            ("cpuacct", "cpuacct.usage_percpu", "1000 234 \n"),
            ("cpuacct", "cpuacct.stat", "user 3\nsystem 2\n"),
            ("pids", "pids.current", "5\n"),
            ("pids", "pids.max", "max\n"),
            (
                "blkio",
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 100\n8:0 Total 100\nTotal 100\n",
            ),
        ] {
            let folder = dir.path().join(controller);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), text).unwrap();
            folders.insert(controller.to_owned(), folder);
        }
        folders.insert("rdma".into(), dir.path().join("gone"));
        let metrics = read(&Cgroup::V1(Arc::new(folders)));
        assert_eq!(metrics.memory.rss, 4096);
        assert_eq!(metrics.memory.total_pg_pg_in, 7);
        assert_eq!(metrics.memory.usage.usage, 8192);
        assert!(metrics.memory.swap.is_none(), "no such files");
        assert_eq!(metrics.memory_oom_control.oom_kill, 2);
        assert_eq!(metrics.cpu.usage.per_cpu, [1000, 234]);
        assert_eq!(metrics.cpu.usage.user, 30_000_000);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (5, 0));
        assert_eq!(metrics.blkio.io_service_bytes_recursive.len(), 2);
        assert!(metrics.rdma.is_none());
    }
}
