#include "textflag.h"

// Poly1305. Numbers modulo 2^130 - 5 are limbs of 44, 44 and 42 bits and a little more, so that VPMADD52 multiplies them; eight are in
// three registers, one in each 64-bit lane. The layout of a table is that of the Go struct: rows of powers from the 32nd to the
// first, and room for a register behind them.
//
//	Z0–Z2    what is multiplied: blocks, and the hash so far
//	Z3–Z7    the power it is multiplied with: limbs; 20 times the second and third, for products beyond 2^132
//	Z8–Z13   sums of the products' low and high 52 bits
//	Z14      temporary
//	Z15–Z19  44 ones; 42 ones; bit 128; the order of low and high words
//	Z20–Z22  the hash so far
//	Z23–Z25  temporary

#define row 320 // bytes

DATA low<>+0(SB)/8, $0
DATA low<>+8(SB)/8, $2
DATA low<>+16(SB)/8, $4
DATA low<>+24(SB)/8, $6
DATA low<>+32(SB)/8, $8
DATA low<>+40(SB)/8, $10
DATA low<>+48(SB)/8, $12
DATA low<>+56(SB)/8, $14
GLOBL low<>(SB), RODATA|NOPTR, $64

DATA high<>+0(SB)/8, $1
DATA high<>+8(SB)/8, $3
DATA high<>+16(SB)/8, $5
DATA high<>+24(SB)/8, $7
DATA high<>+32(SB)/8, $9
DATA high<>+40(SB)/8, $11
DATA high<>+48(SB)/8, $13
DATA high<>+56(SB)/8, $15
GLOBL high<>(SB), RODATA|NOPTR, $64

#define CONSTANTS \
	MOVQ $0xfffffffffff, R10 \
	VPBROADCASTQ R10, Z15 \
	SHRQ $2, R10 \
	VPBROADCASTQ R10, Z16 \
	MOVQ $0x10000000000, R10 \
	VPBROADCASTQ R10, Z17 \
	VMOVDQU64 low<>(SB), Z18 \
	VMOVDQU64 high<>(SB), Z19

#define ZERO \
	VPXORQ Z8, Z8, Z8 \
	VPXORQ Z9, Z9, Z9 \
	VPXORQ Z10, Z10, Z10 \
	VPXORQ Z11, Z11, Z11 \
	VPXORQ Z12, Z12, Z12 \
	VPXORQ Z13, Z13, Z13

// MULTIPLY adds the products of Z0–Z2 and Z3–Z7 to the sums.
#define MULTIPLY \
	VPMADD52LUQ Z3, Z0, Z8 \
	VPMADD52HUQ Z3, Z0, Z11 \
	VPMADD52LUQ Z4, Z0, Z9 \
	VPMADD52HUQ Z4, Z0, Z12 \
	VPMADD52LUQ Z5, Z0, Z10 \
	VPMADD52HUQ Z5, Z0, Z13 \
	VPMADD52LUQ Z7, Z1, Z8 \
	VPMADD52HUQ Z7, Z1, Z11 \
	VPMADD52LUQ Z3, Z1, Z9 \
	VPMADD52HUQ Z3, Z1, Z12 \
	VPMADD52LUQ Z4, Z1, Z10 \
	VPMADD52HUQ Z4, Z1, Z13 \
	VPMADD52LUQ Z6, Z2, Z8 \
	VPMADD52HUQ Z6, Z2, Z11 \
	VPMADD52LUQ Z7, Z2, Z9 \
	VPMADD52HUQ Z7, Z2, Z12 \
	VPMADD52LUQ Z3, Z2, Z10 \
	VPMADD52HUQ Z3, Z2, Z13

// CARRY makes limbs of the sums: less than 2^44, less than 2^44 + 2^16, and less than 2^42.
#define CARRY(l0, l1, l2) \
	VPSRLQ $44, Z8, Z14 \
	VPSLLQ $8, Z11, Z11 \
	VPANDQ Z15, Z8, l0 \
	VPADDQ Z14, Z9, Z9 \
	VPADDQ Z11, Z9, Z9 \
	VPSRLQ $44, Z9, Z14 \
	VPSLLQ $8, Z12, Z12 \
	VPANDQ Z15, Z9, l1 \
	VPADDQ Z14, Z10, Z10 \
	VPADDQ Z12, Z10, Z10 \
	VPSRLQ $42, Z10, Z14 \
	VPSLLQ $10, Z13, Z13 \
	VPANDQ Z16, Z10, l2 \
	VPADDQ Z13, Z14, Z14 \
	VPADDQ Z14, l0, l0 \
	VPSLLQ $2, Z14, Z14 \
	VPADDQ Z14, l0, l0 \
	VPSRLQ $44, l0, Z14 \
	VPANDQ Z15, l0, l0 \
	VPADDQ Z14, l1, l1

// SPLIT makes limbs of eight blocks, the low words of which are in Z23 and the high ones in Z24, without bit 128.
#define SPLIT \
	VPANDQ Z15, Z23, Z0 \
	VPSRLQ $44, Z23, Z1 \
	VPSLLQ $20, Z24, Z14 \
	VPTERNLOGQ $0xa8, Z15, Z14, Z1 \
	VPSRLQ $24, Z24, Z2

// TAKE makes limbs of the eight blocks at mem and mem2, which is 64 bytes behind it.
#define TAKE(mem, mem2) \
	VMOVDQU64 mem, Z23 \
	VMOVDQA64 Z23, Z24 \
	VMOVDQU64 mem2, Z25 \
	VPERMT2Q Z25, Z18, Z23 \
	VPERMT2Q Z25, Z19, Z24 \
	SPLIT \
	VPORQ Z17, Z2, Z2

// ONE makes a power the multiplier in all lanes: the one at offset at of the rows.
#define ONE(at) \
	VPBROADCASTQ (at+0*row)(AX), Z3 \
	VPBROADCASTQ (at+1*row)(AX), Z4 \
	VPBROADCASTQ (at+2*row)(AX), Z5 \
	VPBROADCASTQ (at+3*row)(AX), Z6 \
	VPBROADCASTQ (at+4*row)(AX), Z7

// SO makes what is in Z3–Z5 the multiplier.
#define SO \
	VPSLLQ $4, Z4, Z6 \
	VPSLLQ $2, Z4, Z14 \
	VPADDQ Z14, Z6, Z6 \
	VPSLLQ $4, Z5, Z7 \
	VPSLLQ $2, Z5, Z14 \
	VPADDQ Z14, Z7, Z7

// KEEP puts eight powers at an offset of the rows, and leaves them in Z3–Z7.
#define KEEP(at, l0, l1, l2) \
	VMOVDQA64 l0, Z3 \
	VMOVDQA64 l1, Z4 \
	VMOVDQA64 l2, Z5 \
	SO \
	VMOVDQU64 Z3, (at+0*row)(AX) \
	VMOVDQU64 Z4, (at+1*row)(AX) \
	VMOVDQU64 Z5, (at+2*row)(AX) \
	VMOVDQU64 Z6, (at+3*row)(AX) \
	VMOVDQU64 Z7, (at+4*row)(AX)

// PUT makes limbs what is multiplied.
#define PUT(l0, l1, l2) \
	VMOVDQA64 l0, Z0 \
	VMOVDQA64 l1, Z1 \
	VMOVDQA64 l2, Z2

// func powers(t *table, r *[3]uint64, n int)
TEXT ·powers(SB), NOSPLIT, $0-24
	MOVQ t+0(FP), AX
	MOVQ r+8(FP), BX
	MOVQ n+16(FP), CX
	CONSTANTS
	MOVL $0xaa, R10
	KMOVQ R10, K1
	MOVL $0xcc, R10
	KMOVQ R10, K2
	MOVL $0xf0, R10
	KMOVQ R10, K3

	// the first power, in all lanes; the second
	VPBROADCASTQ (BX), Z3
	VPBROADCASTQ 8(BX), Z4
	VPBROADCASTQ 16(BX), Z5
	SO
	PUT(Z3, Z4, Z5)
	ZERO
	MULTIPLY
	CARRY(Z20, Z21, Z22)

	// from the second to the first, four times; from the fourth to the third
	PUT(Z20, Z21, Z22)
	VMOVDQA64 Z3, K1, Z0
	VMOVDQA64 Z4, K1, Z1
	VMOVDQA64 Z5, K1, Z2
	VMOVDQA64 Z20, Z3
	VMOVDQA64 Z21, Z4
	VMOVDQA64 Z22, Z5
	SO
	ZERO
	MULTIPLY
	CARRY(Z20, Z21, Z22)

	// from the fourth to the first, twice; from the eighth to the fifth
	VPBROADCASTQ X20, Z3
	VPBROADCASTQ X21, Z4
	VPBROADCASTQ X22, Z5
	SO
	VMOVDQA64 Z0, K2, Z20
	VMOVDQA64 Z1, K2, Z21
	VMOVDQA64 Z2, K2, Z22
	PUT(Z20, Z21, Z22)
	ZERO
	MULTIPLY
	CARRY(Z20, Z21, Z22)
	VMOVDQA64 Z0, K3, Z20
	VMOVDQA64 Z1, K3, Z21
	VMOVDQA64 Z2, K3, Z22
	KEEP(24*8, Z20, Z21, Z22)
	CMPQ CX, $8
	JLE  powersEnd

	// from the 16th to the ninth
	PUT(Z20, Z21, Z22)
	ONE(24*8)
	ZERO
	MULTIPLY
	CARRY(Z23, Z24, Z25)
	KEEP(16*8, Z23, Z24, Z25)
	CMPQ CX, $16
	JLE  powersEnd

	// from the 24th to the 17th, and from the 32nd to the 25th
	ONE(16*8)
	ZERO
	MULTIPLY
	CARRY(Z20, Z21, Z22)
	PUT(Z23, Z24, Z25)
	ZERO
	MULTIPLY
	CARRY(Z23, Z24, Z25)
	KEEP(8*8, Z20, Z21, Z22)
	KEEP(0*8, Z23, Z24, Z25)

powersEnd:
	VZEROUPPER
	RET

// func absorb(h *hash, t *table, p *byte, n int)
TEXT ·absorb(SB), NOSPLIT, $0-32
	MOVQ h+0(FP), DI
	MOVQ t+8(FP), AX
	MOVQ p+16(FP), SI
	MOVQ n+24(FP), CX
	CONSTANTS
	VMOVDQU64 (DI), Z20
	VMOVDQU64 64(DI), Z21
	VMOVDQU64 128(DI), Z22

absorbMore:
	ZERO
	TAKE(128(SI), 192(SI))
	ONE(8*8)
	MULTIPLY
	TAKE(256(SI), 320(SI))
	ONE(16*8)
	MULTIPLY
	TAKE(384(SI), 448(SI))
	ONE(24*8)
	MULTIPLY
	TAKE((SI), 64(SI))
	VPADDQ Z20, Z0, Z0
	VPADDQ Z21, Z1, Z1
	VPADDQ Z22, Z2, Z2
	ONE(0*8)
	MULTIPLY
	CARRY(Z20, Z21, Z22)
	ADDQ $512, SI
	DECQ CX
	JNZ  absorbMore
	VMOVDQU64 Z20, (DI)
	VMOVDQU64 Z21, 64(DI)
	VMOVDQU64 Z22, 128(DI)
	VZEROUPPER
	RET

// SUM leaves the sum of the lanes of z in the first, and zero in the others.
#define SUM(z, y, x) \
	VEXTRACTI64X4 $1, z, Y14 \
	VPADDQ Y14, y, y \
	VEXTRACTI64X2 $1, y, X14 \
	VPADDQ X14, x, x \
	VPSHUFD $0x4e, x, X14 \
	VPADDQ X14, x, x \
	VMOVQ x, x

// func absorbLast(h *hash, t *table, p *byte, n int)
TEXT ·absorbLast(SB), NOSPLIT, $0-32
	MOVQ h+0(FP), DI
	MOVQ t+8(FP), AX
	MOVQ p+16(FP), SI
	MOVQ n+24(FP), CX
	CONSTANTS
	VMOVDQU64 (DI), Z20
	VMOVDQU64 64(DI), Z21
	VMOVDQU64 128(DI), Z22
	LEAQ (32*8)(AX), AX
	LEAQ (CX*8), R8
	SUBQ R8, AX
	MOVQ $-1, R9
	ZERO

lastMore:
	BZHIQ CX, R9, R10
	KMOVQ R10, K1 // of the eight lanes, those that have blocks
	LEAQ (CX*2), R11
	BZHIQ R11, R9, R10
	KMOVQ R10, K2 // of the eight words from (SI) on, those that are there
	SHRQ $8, R10
	KMOVQ R10, K3
	VMOVDQU64.Z (SI), K2, Z23
	VMOVDQU64.Z 64(SI), K3, Z25
	VMOVDQA64 Z23, Z24
	VPERMT2Q Z25, Z18, Z23
	VPERMT2Q Z25, Z19, Z24
	SPLIT
	VPORQ Z17, Z2, K1, Z2
	VPADDQ Z20, Z0, Z0
	VPADDQ Z21, Z1, Z1
	VPADDQ Z22, Z2, Z2
	VPXORQ Z20, Z20, Z20
	VPXORQ Z21, Z21, Z21
	VPXORQ Z22, Z22, Z22
	VMOVDQU64 (0*row)(AX), Z3
	VMOVDQU64 (1*row)(AX), Z4
	VMOVDQU64 (2*row)(AX), Z5
	VMOVDQU64 (3*row)(AX), Z6
	VMOVDQU64 (4*row)(AX), Z7
	MULTIPLY
	ADDQ $64, AX
	ADDQ $128, SI
	SUBQ $8, CX
	JGT  lastMore
	CARRY(Z0, Z1, Z2)
	SUM(Z0, Y0, X0)
	SUM(Z1, Y1, X1)
	SUM(Z2, Y2, X2)
	VMOVDQU64 Z0, (DI)
	VMOVDQU64 Z1, 64(DI)
	VMOVDQU64 Z2, 128(DI)
	VZEROUPPER
	RET
