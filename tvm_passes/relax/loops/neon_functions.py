"""Instructions of arm64 as functions in LLVM's language, each a piece of assembly that LLVM chooses registers for.

LLVM must not see what a pointer is made of: it would give loads other addresses, that `ldur` does not reach. Loads of
what a loop before has written are behind `neon_written`, and so nothing moves them before it. Results are memory that
is seen nowhere in a function: LLVM keeps weights in registers in spite of stores, and nothing reads results there.

Those of `neon_ordered_` and `neon_kept` LLVM leaves in the order that they are called in.
"""

_BY_LANE = """
define <4 x float> @neon_ordered_product_LANE(<4 x float> %s, <4 x float> %a, <4 x float> %b) {
  %next = call <4 x float>
    asm sideeffect "fmla $0.4s, $2.4s, $3.s[LANE]", "=w,0,w,w"(<4 x float> %s, <4 x float> %a, <4 x float> %b) #2
  ret <4 x float> %next
}
"""

FUNCTIONS = """
define ptr @neon_written(ptr %place) {
  %same = call ptr asm sideeffect "", "=r,0,~{memory}"(ptr %place)
  ret ptr %same
}
define ptr @neon_place(ptr %place, i32 %step) {
  %same = call ptr asm "", "=r,0,r"(ptr %place, i32 %step) #0
  ret ptr %same
}
define <4 x float> @neon_load(ptr %place, i32 %bytes) {
  %value = call <4 x float> asm "ldur ${0:q}, [$1, $2]", "=w,r,i"(ptr %place, i32 %bytes) #1
  ret <4 x float> %value
}
define <4 x float> @neon_kept(<4 x float> %value) {
  %same = call <4 x float> asm sideeffect "", "=w,0"(<4 x float> %value) #2
  ret <4 x float> %same
}
define <4 x float> @neon_ordered_load(ptr %place, i32 %bytes) {
  %value = call <4 x float> asm sideeffect "ldur ${0:q}, [$1, $2]", "=w,r,i"(ptr %place, i32 %bytes) #2
  ret <4 x float> %value
}
define <4 x float> @neon_ordered_load_far(ptr %place, i32 %bytes) {
  %value = call <4 x float> asm sideeffect "ldr ${0:q}, [$1, $2]", "=w,r,i"(ptr %place, i32 %bytes) #2
  ret <4 x float> %value
}
define <4 x float> @neon_ordered_product(<4 x float> %s, <4 x float> %a, <4 x float> %b) {
  %next = call <4 x float>
    asm sideeffect "fmla $0.4s, $2.4s, $3.4s", "=w,0,w,w"(<4 x float> %s, <4 x float> %a, <4 x float> %b) #2
  ret <4 x float> %next
}
define <4 x float> @neon_ordered_minimum(<4 x float> %a, <4 x float> %b) {
  %value = call <4 x float> asm sideeffect "fminnm $0.4s, $1.4s, $2.4s", "=w,w,w"(<4 x float> %a, <4 x float> %b) #2
  ret <4 x float> %value
}
define <4 x float> @neon_ordered_maximum(<4 x float> %a, <4 x float> %b) {
  %value = call <4 x float> asm sideeffect "fmaxnm $0.4s, $1.4s, $2.4s", "=w,w,w"(<4 x float> %a, <4 x float> %b) #2
  ret <4 x float> %value
}
define ptr @neon_ordered_address(ptr %place, i64 %bytes) {
  %next = call ptr asm sideeffect "add $0, $1, $2", "=r,r,r"(ptr %place, i64 %bytes) #2
  ret ptr %next
}
define void @neon_ordered_store(ptr %place, <4 x float> %value) {
  call void asm sideeffect "st1 {$1.4s}, [$0]", "r,w"(ptr %place, <4 x float> %value) #2
  ret void
}
define void @neon_ordered_store_at(ptr %place, <4 x float> %value, i32 %bytes) {
  call void asm sideeffect "stur ${1:q}, [$0, $2]", "r,w,i"(ptr %place, <4 x float> %value, i32 %bytes) #2
  ret void
}
attributes #0 = { nounwind willreturn memory(none) }
attributes #1 = { nounwind willreturn memory(read) }
attributes #2 = { nounwind willreturn memory(inaccessiblemem: readwrite) }
""" + "".join(_BY_LANE.replace("LANE", lane) for lane in "0123")
