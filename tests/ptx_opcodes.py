"""List PTX opcodes: those of the project's kernels, and others that LLVM emits for kernels of the same kind."""

APPROXIMATE = ("approx", "full")

# Every opcode that computes on registers in the project's kernels, compiled for sm_80, sm_90, sm_100 and sm_120.
KERNELS_TEXT = """
abs.bf16 abs.f16 abs.f32 abs.f64 abs.ftz.f32 abs.s32 add.rn.bf16 add.rn.bf16x2 add.rn.f16 add.rn.f16x2 add.rn.f32
add.rn.f32.bf16 add.rn.f32.f16 add.rn.f32x2 add.rn.f64 add.rn.ftz.f32 add.s32 add.s64 and.b16 and.b32 and.b64 and.pred
bfe.u32 copysign.f32 cvt.f32.bf16 cvt.f32.f16 cvt.f64.f32 cvt.ftz.sat.f32.f32 cvt.rn.bf16.f32 cvt.rn.bf16x2.f32
cvt.rn.f16.f32 cvt.rn.f16x2.f32 cvt.rn.f32.f64 cvt.rn.f32.s32 cvt.rn.f32.u32 cvt.rn.f64.s32 cvt.rni.f32.f32
cvt.rzi.f32.f32 cvt.rzi.f64.f64 cvt.s64.s32 cvt.u16.u32 cvt.u32.u16 cvt.u32.u64 cvt.u64.u32 div.rn.f32 div.rn.f64
div.s32 ex2.approx.ftz.f32 fma.rm.ftz.f32 fma.rn.bf16 fma.rn.bf16x2 fma.rn.f64 fma.rn.ftz.f32 mad.lo.s32 mad.wide.s32
mad.wide.u32 max.f32 max.f64 max.s32 max.s64 min.f32 min.f64 min.s32 min.s64 mul.lo.s32 mul.lo.s64 mul.rn.bf16
mul.rn.bf16x2 mul.rn.f16 mul.rn.f16x2 mul.rn.f32 mul.rn.f32x2 mul.rn.f64 mul.rn.ftz.f32 mul.wide.s32 mul.wide.u32
neg.f32 neg.f64 neg.s32 not.pred or.b16 or.b32 or.b64 or.pred prmt.b32 rcp.approx.ftz.f32 rcp.approx.ftz.f64 selp.b16
selp.b32 selp.b64 selp.f32 selp.f64 setp.eq.b16 setp.eq.b32 setp.eq.b64 setp.eq.bf16 setp.eq.bf16x2 setp.eq.f16
setp.eq.f16x2 setp.eq.f32 setp.eq.f64 setp.ge.bf16 setp.ge.bf16x2 setp.ge.f16 setp.ge.f16x2 setp.ge.f32 setp.ge.f64
setp.ge.s32 setp.geu.bf16 setp.geu.f16 setp.geu.f32 setp.geu.f64 setp.gt.bf16 setp.gt.bf16x2 setp.gt.f16 setp.gt.f16x2
setp.gt.f32 setp.gt.f64 setp.gt.s32 setp.gt.u32 setp.le.bf16 setp.le.bf16x2 setp.le.f16 setp.le.f16x2 setp.le.f32
setp.le.f64 setp.leu.bf16 setp.leu.f16 setp.leu.f32 setp.leu.f64 setp.lt.bf16 setp.lt.bf16x2 setp.lt.f16 setp.lt.f16x2
setp.lt.f32 setp.lt.f64 setp.lt.s32 setp.lt.s64 setp.lt.u32 setp.ltu.f32 setp.ltu.f64 setp.nan.f32 setp.nan.f64
setp.ne.b16 setp.ne.b32 setp.ne.b64 setp.neu.bf16 setp.neu.f16 setp.neu.f32 setp.neu.f64 setp.num.f32 shl.b16 shl.b32
shl.b64 shr.s32 shr.s64 shr.u16 shr.u32 sqrt.rn.f32 sqrt.rn.f64 sub.rn.f32 sub.rn.f32.bf16 sub.rn.f32.f16 sub.rn.f32x2
sub.rn.f64 sub.rn.ftz.f32 sub.s32 xor.b16 xor.b32 xor.b64
"""
KERNELS = tuple(KERNELS_TEXT.split())


def spell(pattern: str) -> list[str]:
    """Return the opcodes of a pattern, in which each part lists alternatives, "-" for none: "add.- ftz.f32"."""
    texts = [""]
    for part in pattern.split("."):
        texts = [f"{text}.{choice}" for text in texts for choice in part.split()]
    return [text[1:].replace(".-", "") for text in texts]


PATTERNS = """
add sub mul div.rn rz rm rp.- ftz.f32
add sub mul div.rz rm rp.f64
add sub mul.rn.ftz sat ftz.f16 f16x2
add sub mul.rn rz.sat.f32
sqrt rcp.rn rz rm rp.- ftz.f32
sqrt rcp.rn rz rm rp.f64
fma.rn rz rm rp.- ftz sat.f32
fma mad.rn rz rm rp.f64
fma.rn.- ftz sat relu.f16 f16x2
fma.rn.- relu.bf16 bf16x2
sub fma.rn.f32x2
add sub fma.rz rm rp.f32.f16 bf16
fma.rn.- sat.f32.f16 bf16
min max.- ftz NaN.f32 f16 f16x2
min max.ftz.NaN.f32
min max.- NaN.bf16 bf16x2
min max.NaN.xorsign.abs.f32 f16 bf16
min max.xorsign.abs.f32 f16x2
neg abs.f32 f64 f16 f16x2 bf16 bf16x2
neg abs.ftz.f32 f16 f16x2
copysign.f32 f64
testp.finite infinite number notanumber normal subnormal.f32 f64
add sub min max.u16 s16 u32 s32 u64 s64
add sub.sat.s32
min max.relu.s32
add sub min max.u16x2 s16x2
neg abs.s16 s32 s64
mul mad.lo hi wide.u16 s16 u32 s32
mul mad.lo hi.u64 s64
mad.hi.sat.s32
mul24 mad24.lo hi.u32 s32
div rem.u16 s16 u32 s32 u64 s64
sad.u16 s16 u32 s32 u64 s64
dp4a.u32 s32.u32 s32
dp2a.lo hi.u32 s32.u32 s32
and or xor.pred b16 b32 b64
not cnot.b16 b32 b64
not.pred
lop3.b32
shl.b16 b32 b64
shr.b16 b32 b64 u16 u32 u64 s16 s32 s64
shf.l r.wrap clamp.b32
bfe.u32 s32 u64 s64
bfi brev clz popc.b32 b64
bfind.- shiftamt.u32 s32 u64 s64
prmt.b32.- f4e b4e rc8 ecl ecr rc16
selp.b16 b32 b64 u16 u32 u64 s16 s32 s64 f16 f32 f64 bf16
slct.b32 u64 f32.s32 f32
slct.ftz.f32.f32
setp.eq ne lt le gt ge equ neu ltu leu gtu geu num nan.f32 f64 f16 bf16
setp.eq ne lt le gt ge equ neu ltu leu gtu geu num nan.f16x2 bf16x2
setp.lt geu.ftz.f32 f16 f16x2
setp.lt eq ne.and or xor.s32 f32 f16x2 b16
setp.eq ne lt le gt ge.s16 s32 s64 u16 u32 u64
setp.lo ls hi hs.u16 u32 u64
set.lt geu nan.u32 s32 f32.f32 f16 bf16
set.lt ge.u32 f32.s32 u32
set.lt.and.u32.s32
cvt.u8 u16 u32 u64 s8 s16 s32 s64.u8 u16 u32 u64 s8 s16 s32 s64
cvt.sat.u8 u16 u32 s8 s16 s32.u64 s64 s32 u16
cvt.rn rz rm rp.f16 bf16 f32 f64.u8 u16 u32 u64 s16 s32 s64
cvt.rni rzi rmi rpi.u8 s8 u16 s16 u32 s32 u64 s64.f16 bf16 f32 f64
cvt.rzi.ftz.s32 u64.f32
cvt.rni rzi rmi rpi.f32 f64 f16 bf16.SAME
cvt.rni.ftz.f32.f32
cvt.f32 f64.f16 bf16
cvt.f64.f32
cvt.sat ftz.f32.f32
cvt.rn rz rm rp.f16 bf16 f32.f64
cvt.rn rz rm rp.f16 bf16.f32
cvt.rn rz.f16 bf16.bf16 f16
cvt.rn rz.ftz sat.f32.f64
cvt.rn.sat.f16.f32
cvt.rn rz.relu satfinite.f16 bf16.f32
cvt.rn rz.- relu satfinite.f16x2 bf16x2.f32
cvt.rn rz.relu.satfinite.f16x2.f32
cvt.rna rn rz.- satfinite.tf32.f32
cvt.rn rz.relu.tf32.f32
cvt.rn.satfinite.- relu.e4m3x2 e5m2x2.f32 f16x2 bf16x2
cvt.rn.- relu.f16x2.e4m3x2 e5m2x2
"""


def _others() -> list[str]:
    """Return the opcodes of the patterns, once each; SAME stands for the type before it."""
    found: dict[str, None] = {}
    for pattern in PATTERNS.strip().splitlines():
        for text in spell(pattern):
            *parts, last = text.split(".")
            found[".".join([*parts, parts[-1] if last == "SAME" else last])] = None
    return [text for text in found if "i." in text or not text.endswith((".f16.f16", ".bf16.bf16"))]


OTHERS = tuple(text for text in _others() if text not in KERNELS)
EXACT = tuple(text for text in (*KERNELS, *OTHERS) if not any(part in text.split(".") for part in APPROXIMATE))
