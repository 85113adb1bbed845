//! What a piece of work costs: wall time and peak memory.

use std::time::Instant;

/// Wall time and peak memory of a piece of work.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Wall time, seconds.
    pub seconds: f64,
    /// Peak resident memory of the whole process meanwhile, bytes (Linux only).
    pub peak_bytes: Option<u64>,
}

/// Does the work and measures it.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    // Sets the kernel's high-water mark back to what is resident now.
    let reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let start = Instant::now();
    let result = work();
    let cost = Cost {
        seconds: start.elapsed().as_secs_f64(),
        peak_bytes: if reset { high_water_mark() } else { None },
    };
    (result, cost)
}

fn high_water_mark() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_at_least_what_the_work_touched() {
        let (sum, cost) = measured(|| {
            let touched = vec![1u8; 64 << 20];
            touched.iter().map(|&b| u64::from(b)).sum::<u64>()
        });
        assert_eq!(sum, 64 << 20);
        assert!(cost.seconds > 0.0);
        if let Some(peak) = cost.peak_bytes {
            assert!(peak >= 64 << 20, "{peak}");
        }
    }
}
