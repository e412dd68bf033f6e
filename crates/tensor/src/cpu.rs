//! What processor this is.

/// The processor's name, for measurements that hold on one only: the brand string of x86-64 (as in
/// `AMD EPYC 9V74`), the kinds of core that Linux on Arm lists (as in `aarch64 41:d05 41:d0a`: who made
/// them, and which), elsewhere the architecture.
pub fn name() -> String {
    brand().unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(target_arch = "x86_64")]
fn brand() -> Option<String> {
    use std::arch::x86_64::__cpuid;
    const FIRST: u32 = 0x8000_0002;
    if __cpuid(0x8000_0000).eax < FIRST + 2 {
        return None;
    }
    let bytes: Vec<u8> = (FIRST..FIRST + 3)
        .map(__cpuid)
        .flat_map(|words| [words.eax, words.ebx, words.ecx, words.edx])
        .flat_map(u32::to_le_bytes)
        .take_while(|&byte| byte != 0)
        .collect();
    let name = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// Whether AMD made it. Asked of the processor once: a virtual machine has to be left for it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_amd() -> bool {
    use std::arch::x86_64::__cpuid;
    use std::sync::OnceLock;
    static AMD: OnceLock<bool> = OnceLock::new();
    *AMD.get_or_init(|| {
        let maker = __cpuid(0);
        [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn brand() -> Option<String> {
    let cores = cores(&std::fs::read_to_string("/proc/cpuinfo").ok()?);
    (!cores.is_empty()).then(|| format!("{} {}", std::env::consts::ARCH, cores.join(" ")))
}

/// The kinds of core of an Arm `/proc/cpuinfo`, `implementer:part` in hexadecimal, each once.
#[cfg(any(not(target_arch = "x86_64"), test))]
fn cores(cpuinfo: &str) -> Vec<String> {
    let (mut implementer, mut cores) = ("", std::collections::BTreeSet::new());
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    for (field, value) in fields {
        let value = value.trim().trim_start_matches("0x");
        match field.trim() {
            "CPU implementer" => implementer = value,
            "CPU part" => _ = cores.insert(format!("{implementer}:{value}")),
            _ => (),
        }
    }
    cores.into_iter().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_kind_of_core_is_listed_once() {
        let core = |part| {
            format!(
                "processor : 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: {part}\n\n"
            )
        };
        let text = [core("0xd0a"), core("0xd05"), core("0xd0a")].concat();
        assert_eq!(super::cores(&text), ["41:d05", "41:d0a"]);
        assert_eq!(super::cores("model name : another\n"), [""; 0]);
    }

    #[test]
    fn a_processor_has_one_name_on_one_line() {
        let name = super::name();
        assert!(!name.is_empty() && !name.contains('\n') && name == super::name());
    }
}
