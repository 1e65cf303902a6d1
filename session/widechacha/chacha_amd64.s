#include "textflag.h"

// ChaCha20. Each of Z0 to Z15 has one word of the state of 16 blocks, one block in each 32-bit lane.

DATA expand<>+0(SB)/4, $0x61707865 // "expand 32-byte k"
DATA expand<>+4(SB)/4, $0x3320646e
DATA expand<>+8(SB)/4, $0x79622d32
DATA expand<>+12(SB)/4, $0x6b206574
GLOBL expand<>(SB), RODATA|NOPTR, $16

DATA lanes<>+0(SB)/4, $0
DATA lanes<>+4(SB)/4, $1
DATA lanes<>+8(SB)/4, $2
DATA lanes<>+12(SB)/4, $3
DATA lanes<>+16(SB)/4, $4
DATA lanes<>+20(SB)/4, $5
DATA lanes<>+24(SB)/4, $6
DATA lanes<>+28(SB)/4, $7
DATA lanes<>+32(SB)/4, $8
DATA lanes<>+36(SB)/4, $9
DATA lanes<>+40(SB)/4, $10
DATA lanes<>+44(SB)/4, $11
DATA lanes<>+48(SB)/4, $12
DATA lanes<>+52(SB)/4, $13
DATA lanes<>+56(SB)/4, $14
DATA lanes<>+60(SB)/4, $15
GLOBL lanes<>(SB), RODATA|NOPTR, $64

// STEP adds b to a and rotates d, xored with a, for four quarter rounds at once.
#define STEP(n, a0, a1, a2, a3, b0, b1, b2, b3, d0, d1, d2, d3) \
	VPADDD b0, a0, a0 \
	VPADDD b1, a1, a1 \
	VPADDD b2, a2, a2 \
	VPADDD b3, a3, a3 \
	VPXORD a0, d0, d0 \
	VPXORD a1, d1, d1 \
	VPXORD a2, d2, d2 \
	VPXORD a3, d3, d3 \
	VPROLD n, d0, d0 \
	VPROLD n, d1, d1 \
	VPROLD n, d2, d2 \
	VPROLD n, d3, d3

// QUARTERS is four quarter rounds: on columns, or on diagonals.
#define QUARTERS(a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3) \
	STEP($16, a0, a1, a2, a3, b0, b1, b2, b3, d0, d1, d2, d3) \
	STEP($12, c0, c1, c2, c3, d0, d1, d2, d3, b0, b1, b2, b3) \
	STEP($8, a0, a1, a2, a3, b0, b1, b2, b3, d0, d1, d2, d3) \
	STEP($7, c0, c1, c2, c3, d0, d1, d2, d3, b0, b1, b2, b3)

// LOAD sets the state for the key at (AX), the nonce at (BX) and the counters in Z31, which are those of the next 16 blocks.
#define LOAD \
	VPBROADCASTD expand<>+0(SB), Z0 \
	VPBROADCASTD expand<>+4(SB), Z1 \
	VPBROADCASTD expand<>+8(SB), Z2 \
	VPBROADCASTD expand<>+12(SB), Z3 \
	VPBROADCASTD (AX), Z4 \
	VPBROADCASTD 4(AX), Z5 \
	VPBROADCASTD 8(AX), Z6 \
	VPBROADCASTD 12(AX), Z7 \
	VPBROADCASTD 16(AX), Z8 \
	VPBROADCASTD 20(AX), Z9 \
	VPBROADCASTD 24(AX), Z10 \
	VPBROADCASTD 28(AX), Z11 \
	VMOVDQA64 Z31, Z12 \
	VPBROADCASTD (BX), Z13 \
	VPBROADCASTD 4(BX), Z14 \
	VPBROADCASTD 8(BX), Z15 \
	MOVL $10, R8

#define DOUBLEROUND \
	QUARTERS(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, Z9, Z10, Z11, Z12, Z13, Z14, Z15) \
	QUARTERS(Z0, Z1, Z2, Z3, Z5, Z6, Z7, Z4, Z10, Z11, Z8, Z9, Z15, Z12, Z13, Z14)

// ADD adds the state to what became of it.
#define ADD \
	VPADDD.BCST expand<>+0(SB), Z0, Z0 \
	VPADDD.BCST expand<>+4(SB), Z1, Z1 \
	VPADDD.BCST expand<>+8(SB), Z2, Z2 \
	VPADDD.BCST expand<>+12(SB), Z3, Z3 \
	VPADDD.BCST (AX), Z4, Z4 \
	VPADDD.BCST 4(AX), Z5, Z5 \
	VPADDD.BCST 8(AX), Z6, Z6 \
	VPADDD.BCST 12(AX), Z7, Z7 \
	VPADDD.BCST 16(AX), Z8, Z8 \
	VPADDD.BCST 20(AX), Z9, Z9 \
	VPADDD.BCST 24(AX), Z10, Z10 \
	VPADDD.BCST 28(AX), Z11, Z11 \
	VPADDD Z31, Z12, Z12 \
	VPADDD.BCST (BX), Z13, Z13 \
	VPADDD.BCST 4(BX), Z14, Z14 \
	VPADDD.BCST 8(BX), Z15, Z15

// WORDS makes of four words of 16 blocks, w0 to w3, registers that have all four of four blocks each: those of blocks 0, 4, 8 and 12
// in w0, of 1, 5, 9 and 13 in w1, and so on.
#define WORDS(w0, w1, w2, w3) \
	VPUNPCKLDQ w1, w0, Z16 \
	VPUNPCKHDQ w1, w0, Z17 \
	VPUNPCKLDQ w3, w2, Z18 \
	VPUNPCKHDQ w3, w2, Z19 \
	VPUNPCKLQDQ Z18, Z16, w0 \
	VPUNPCKHQDQ Z18, Z16, w1 \
	VPUNPCKLQDQ Z19, Z17, w2 \
	VPUNPCKHQDQ Z19, Z17, w3

// BLOCKS makes whole blocks of what WORDS leaves for each four words: the first in b0, the one four blocks later in b1, and so on.
#define BLOCKS(b0, b1, b2, b3) \
	VSHUFI32X4 $0x44, b1, b0, Z16 \
	VSHUFI32X4 $0xee, b1, b0, Z17 \
	VSHUFI32X4 $0x44, b3, b2, Z18 \
	VSHUFI32X4 $0xee, b3, b2, Z19 \
	VSHUFI32X4 $0x88, Z18, Z16, b0 \
	VSHUFI32X4 $0xdd, Z18, Z16, b1 \
	VSHUFI32X4 $0x88, Z19, Z17, b2 \
	VSHUFI32X4 $0xdd, Z19, Z17, b3

// TRANSPOSE leaves block after block in Z0 to Z15.
#define TRANSPOSE \
	WORDS(Z0, Z1, Z2, Z3) \
	WORDS(Z4, Z5, Z6, Z7) \
	WORDS(Z8, Z9, Z10, Z11) \
	WORDS(Z12, Z13, Z14, Z15) \
	BLOCKS(Z0, Z4, Z8, Z12) \
	BLOCKS(Z1, Z5, Z9, Z13) \
	BLOCKS(Z2, Z6, Z10, Z14) \
	BLOCKS(Z3, Z7, Z11, Z15)

// COUNTERS sets Z31 for the first 16 blocks from n on, and Z30 to 16.
#define COUNTERS(n) \
	VPBROADCASTD n, Z31 \
	VPADDD lanes<>(SB), Z31, Z31 \
	MOVL $16, R9 \
	VPBROADCASTD R9, Z30

// func keyStream(out *[run]byte, key *[32]byte, nonce *byte, counter uint32)
TEXT ·keyStream(SB), NOSPLIT, $0-28
	MOVQ out+0(FP), DI
	MOVQ key+8(FP), AX
	MOVQ nonce+16(FP), BX
	COUNTERS(counter+24(FP))
	LOAD

rounds:
	DOUBLEROUND
	DECL R8
	JNZ  rounds
	ADD
	TRANSPOSE
	VMOVDQU64 Z0, (DI)
	VMOVDQU64 Z1, 64(DI)
	VMOVDQU64 Z2, 128(DI)
	VMOVDQU64 Z3, 192(DI)
	VMOVDQU64 Z4, 256(DI)
	VMOVDQU64 Z5, 320(DI)
	VMOVDQU64 Z6, 384(DI)
	VMOVDQU64 Z7, 448(DI)
	VMOVDQU64 Z8, 512(DI)
	VMOVDQU64 Z9, 576(DI)
	VMOVDQU64 Z10, 640(DI)
	VMOVDQU64 Z11, 704(DI)
	VMOVDQU64 Z12, 768(DI)
	VMOVDQU64 Z13, 832(DI)
	VMOVDQU64 Z14, 896(DI)
	VMOVDQU64 Z15, 960(DI)
	VZEROUPPER
	RET

// func xorRuns(dst, src *byte, runs int, key *[32]byte, nonce *byte, counter uint32)
TEXT ·xorRuns(SB), NOSPLIT, $0-44
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ runs+16(FP), CX
	MOVQ key+24(FP), AX
	MOVQ nonce+32(FP), BX
	COUNTERS(counter+40(FP))

more:
	LOAD

rounds:
	DOUBLEROUND
	DECL R8
	JNZ  rounds
	ADD
	VPADDD Z30, Z31, Z31
	TRANSPOSE
	VPXORQ (SI), Z0, Z0
	VPXORQ 64(SI), Z1, Z1
	VPXORQ 128(SI), Z2, Z2
	VPXORQ 192(SI), Z3, Z3
	VPXORQ 256(SI), Z4, Z4
	VPXORQ 320(SI), Z5, Z5
	VPXORQ 384(SI), Z6, Z6
	VPXORQ 448(SI), Z7, Z7
	VPXORQ 512(SI), Z8, Z8
	VPXORQ 576(SI), Z9, Z9
	VPXORQ 640(SI), Z10, Z10
	VPXORQ 704(SI), Z11, Z11
	VPXORQ 768(SI), Z12, Z12
	VPXORQ 832(SI), Z13, Z13
	VPXORQ 896(SI), Z14, Z14
	VPXORQ 960(SI), Z15, Z15
	VMOVDQU64 Z0, (DI)
	VMOVDQU64 Z1, 64(DI)
	VMOVDQU64 Z2, 128(DI)
	VMOVDQU64 Z3, 192(DI)
	VMOVDQU64 Z4, 256(DI)
	VMOVDQU64 Z5, 320(DI)
	VMOVDQU64 Z6, 384(DI)
	VMOVDQU64 Z7, 448(DI)
	VMOVDQU64 Z8, 512(DI)
	VMOVDQU64 Z9, 576(DI)
	VMOVDQU64 Z10, 640(DI)
	VMOVDQU64 Z11, 704(DI)
	VMOVDQU64 Z12, 768(DI)
	VMOVDQU64 Z13, 832(DI)
	VMOVDQU64 Z14, 896(DI)
	VMOVDQU64 Z15, 960(DI)
	ADDQ $1024, SI
	ADDQ $1024, DI
	DECQ CX
	JNZ  more
	VZEROUPPER
	RET

// func xor(dst, src, stream *byte, n int)
TEXT ·xor(SB), NOSPLIT, $0-32
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ stream+16(FP), DX
	MOVQ n+24(FP), CX
	SUBQ $64, CX
	JLT  xorRest

xorMore:
	VMOVDQU64 (SI), Z0
	VPXORQ (DX), Z0, Z0
	VMOVDQU64 Z0, (DI)
	ADDQ $64, SI
	ADDQ $64, DX
	ADDQ $64, DI
	SUBQ $64, CX
	JGE  xorMore

xorRest:
	ADDQ $64, CX
	MOVQ $-1, R10
	BZHIQ CX, R10, R11
	KMOVQ R11, K1
	VMOVDQU8.Z (SI), K1, Z0
	VMOVDQU8.Z (DX), K1, Z1
	VPXORQ Z1, Z0, Z0
	VMOVDQU8 Z0, K1, (DI)
	VZEROUPPER
	RET
