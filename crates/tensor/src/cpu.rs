//! What processor this is.

/// The processor's name, for measurements that hold on one only: the brand string of x86-64 (as in
/// `AMD EPYC 9V74`), elsewhere the architecture.
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

#[cfg(not(target_arch = "x86_64"))]
fn brand() -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_processor_has_one_name_on_one_line() {
        let name = super::name();
        assert!(!name.is_empty() && !name.contains('\n') && name == super::name());
    }
}
