//! What this build of the library is.

use crate::backend;
use crate::backend::cpu::SimdLevel;

/// Version, target, backends and the processor's instructions that are used, in a line: for logs and reports of bugs.
pub fn build_info() -> String {
    let (version, backends) = (env!("CARGO_PKG_VERSION"), backend::NAMES.join(", "));
    let (arch, os, level) = (std::env::consts::ARCH, std::env::consts::OS, SimdLevel::best());
    format!("longgen {version} for {arch} {os}; backends: {backends}; processor: {level}")
}

#[cfg(test)]
mod tests {
    /// What the system says of the processor decides, not what the library found.
    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn the_line_names_the_instructions_that_the_processor_has() {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = info.lines().find(|line| line.starts_with("flags")).unwrap();
        let has =
            |names: &str| names.split(' ').all(|name| flags.split_whitespace().any(|flag| flag == name));
        let expected = match (has("avx2 fma f16c"), has("avx512f avx512bw avx512vl avx512dq avx512_vnni")) {
            (true, true) => "AVX-512",
            (true, false) => "AVX2",
            (false, _) => "portable",
        };
        let line = super::build_info();
        assert!(line.ends_with(&format!("; processor: {expected}")), "{line}");
        assert_eq!(line.contains("cuda"), cfg!(feature = "cuda"), "{line}");
    }
}
