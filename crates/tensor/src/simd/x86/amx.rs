//! The token of AMX, and what the system has to allow before tiles may be used.

use super::{Avx512, Avx512Vnni, Isa};

/// AVX-512 with VNNI, and matrix tiles of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx(Avx512Vnni);

impl From<Amx> for Avx512 {
    fn from(amx: Amx) -> Self {
        amx.0.into()
    }
}

impl Isa for Amx {
    fn detect() -> Option<Self> {
        Avx512Vnni::detect().filter(|_| has_tiles() && may_use_tiles()).map(Self)
    }

    #[inline(always)]
    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        self.0.enter(f)
    }

    #[inline(always)]
    fn prefetch_line<T>(self, at: *const T) {
        self.0.prefetch_line(at);
    }

    #[inline(always)]
    fn prefetch_outer<T>(self, data: &[T], at: usize) {
        self.0.prefetch_outer(data, at);
    }
}

/// Whether the processor has tiles (AMX-TILE) of bytes (AMX-INT8).
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const TILES_OF_BYTES: u32 = 1 << 24 | 1 << 25;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES_OF_BYTES == TILES_OF_BYTES
}

/// Asks Linux for the right to use tiles, once for the process: their eight kilobytes of registers
/// are not saved for processes that never ask.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    use std::sync::OnceLock;
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        const ARCH_PRCTL: isize = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XTILEDATA: usize = 18;
        let mut result = ARCH_PRCTL;
        // SAFETY: a system call that takes two numbers and touches no memory of ours; the instruction
        // overwrites rcx and r11.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack)
            );
        }
        result == 0
    })
}

/// Other systems are not asked.
#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}
