#include "textflag.h"

// Both functions work on 256 bytes, that is 16 blocks, at a time, and on what is left of them with masks. The layout of keys is
// that of the Go struct: 15 round keys, then the powers of the hash key from the 17th to the first, then zeros.
//
//	Z0–Z14   round keys, in each of the four blocks of a register
//	Z15–Z18  key stream; then temporary
//	Z19–Z22  what is hashed
//	Z23      the hash so far, in the first block; zero in the others
//	Z24–Z27  a power of the hash key; low, high and middle of the products
//	Z28, Z29 4 and the counter, little-endian
//	Z30, Z31 the polynomial; the order of bytes reversed in each block

DATA reverse<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse<>+8(SB)/8, $0x0001020304050607
GLOBL reverse<>(SB), RODATA|NOPTR, $16

DATA polynomial<>+0(SB)/8, $0x0000000000000001
DATA polynomial<>+8(SB)/8, $0xc200000000000000
GLOBL polynomial<>(SB), RODATA|NOPTR, $16

DATA first<>+0(SB)/8, $1
DATA first<>+8(SB)/8, $0
DATA first<>+16(SB)/8, $2
DATA first<>+24(SB)/8, $0
DATA first<>+32(SB)/8, $3
DATA first<>+40(SB)/8, $0
DATA first<>+48(SB)/8, $4
DATA first<>+56(SB)/8, $0
GLOBL first<>(SB), RODATA|NOPTR, $64

DATA four<>+0(SB)/8, $4
DATA four<>+8(SB)/8, $0
GLOBL four<>(SB), RODATA|NOPTR, $16

#define powers 240 // offset of the 17th

#define ROUND(k) \
	VAESENC k, Z15, Z15 \
	VAESENC k, Z16, Z16 \
	VAESENC k, Z17, Z17 \
	VAESENC k, Z18, Z18

// KEYSTREAM makes the next 256 bytes of it.
#define KEYSTREAM \
	VPSHUFB Z31, Z29, Z15 \
	VPADDD Z28, Z29, Z29 \
	VPSHUFB Z31, Z29, Z16 \
	VPADDD Z28, Z29, Z29 \
	VPSHUFB Z31, Z29, Z17 \
	VPADDD Z28, Z29, Z29 \
	VPSHUFB Z31, Z29, Z18 \
	VPADDD Z28, Z29, Z29 \
	VPXORQ Z0, Z15, Z15 \
	VPXORQ Z0, Z16, Z16 \
	VPXORQ Z0, Z17, Z17 \
	VPXORQ Z0, Z18, Z18 \
	ROUND(Z1) \
	ROUND(Z2) \
	ROUND(Z3) \
	ROUND(Z4) \
	ROUND(Z5) \
	ROUND(Z6) \
	ROUND(Z7) \
	ROUND(Z8) \
	ROUND(Z9) \
	ROUND(Z10) \
	ROUND(Z11) \
	ROUND(Z12) \
	ROUND(Z13) \
	VAESENCLAST Z14, Z15, Z15 \
	VAESENCLAST Z14, Z16, Z16 \
	VAESENCLAST Z14, Z17, Z17 \
	VAESENCLAST Z14, Z18, Z18

// PRODUCT adds the products of z and the powers at mem to the sums.
#define PRODUCT(mem, z) \
	VMOVDQU64 mem, Z24 \
	VPCLMULQDQ $0x00, Z24, z, Z15 \
	VPCLMULQDQ $0x11, Z24, z, Z16 \
	VPCLMULQDQ $0x01, Z24, z, Z17 \
	VPCLMULQDQ $0x10, Z24, z, Z18 \
	VPXORQ Z15, Z25, Z25 \
	VPXORQ Z16, Z26, Z26 \
	VPTERNLOGQ $0x96, Z17, Z18, Z27

// PRODUCTS makes the products of Z19 to Z22, and the hash so far, with the powers from R9 on.
#define PRODUCTS \
	VPSHUFB Z31, Z19, Z19 \
	VPSHUFB Z31, Z20, Z20 \
	VPSHUFB Z31, Z21, Z21 \
	VPSHUFB Z31, Z22, Z22 \
	VPXORQ Z23, Z19, Z19 \
	VMOVDQU64 (R9), Z24 \
	VPCLMULQDQ $0x00, Z24, Z19, Z25 \
	VPCLMULQDQ $0x11, Z24, Z19, Z26 \
	VPCLMULQDQ $0x01, Z24, Z19, Z27 \
	VPCLMULQDQ $0x10, Z24, Z19, Z18 \
	VPXORQ Z18, Z27, Z27 \
	PRODUCT(64(R9), Z20) \
	PRODUCT(128(R9), Z21) \
	PRODUCT(192(R9), Z22)

// REDUCE makes the hash so far of the sums of products.
#define REDUCE \
	VPCLMULQDQ $0x01, Z25, Z30, Z15 \
	VPSHUFD $0x4e, Z25, Z25 \
	VPTERNLOGQ $0x96, Z15, Z25, Z27 \
	VPCLMULQDQ $0x01, Z27, Z30, Z15 \
	VPSHUFD $0x4e, Z27, Z27 \
	VPTERNLOGQ $0x96, Z15, Z27, Z26 \
	VEXTRACTI64X4 $1, Z26, Y15 \
	VPXORQ Y15, Y26, Y26 \
	VEXTRACTI64X2 $1, Y26, X15 \
	VPXORQ X15, X26, X23

// BEGIN loads keys and constants, leaves the key stream for the tag at (R8), and hashes the associated data.
#define BEGIN \
	VBROADCASTI32X4 0(AX), Z0 \
	VBROADCASTI32X4 16(AX), Z1 \
	VBROADCASTI32X4 32(AX), Z2 \
	VBROADCASTI32X4 48(AX), Z3 \
	VBROADCASTI32X4 64(AX), Z4 \
	VBROADCASTI32X4 80(AX), Z5 \
	VBROADCASTI32X4 96(AX), Z6 \
	VBROADCASTI32X4 112(AX), Z7 \
	VBROADCASTI32X4 128(AX), Z8 \
	VBROADCASTI32X4 144(AX), Z9 \
	VBROADCASTI32X4 160(AX), Z10 \
	VBROADCASTI32X4 176(AX), Z11 \
	VBROADCASTI32X4 192(AX), Z12 \
	VBROADCASTI32X4 208(AX), Z13 \
	VBROADCASTI32X4 224(AX), Z14 \
	VBROADCASTI32X4 reverse<>(SB), Z31 \
	VBROADCASTI32X4 polynomial<>(SB), Z30 \
	VBROADCASTI32X4 four<>(SB), Z28 \
	VMOVQ (BX), X15 \
	MOVL 8(BX), R10 \
	VPINSRD $2, R10, X15, X15 \
	MOVL $0x01000000, R10 \
	VPINSRD $3, R10, X15, X15 \
	VPXORQ X0, X15, X16 \
	VPSHUFB X31, X15, X15 \
	VSHUFI64X2 $0, Z15, Z15, Z29 \
	VPADDD first<>(SB), Z29, Z29 \
	VAESENC X1, X16, X16 \
	VAESENC X2, X16, X16 \
	VAESENC X3, X16, X16 \
	VAESENC X4, X16, X16 \
	VAESENC X5, X16, X16 \
	VAESENC X6, X16, X16 \
	VAESENC X7, X16, X16 \
	VAESENC X8, X16, X16 \
	VAESENC X9, X16, X16 \
	VAESENC X10, X16, X16 \
	VAESENC X11, X16, X16 \
	VAESENC X12, X16, X16 \
	VAESENC X13, X16, X16 \
	VAESENCLAST X14, X16, X16 \
	VMOVDQU64 X16, (R8) \
	VMOVDQU64 (DX), X19 \
	VPSHUFB X31, X19, X19 \
	VMOVDQU64 (powers+256)(AX), X24 \
	VPCLMULQDQ $0x00, X24, X19, X25 \
	VPCLMULQDQ $0x11, X24, X19, X26 \
	VPCLMULQDQ $0x01, X24, X19, X27 \
	VPCLMULQDQ $0x10, X24, X19, X18 \
	VPXORQ X18, X27, X27 \
	REDUCE \
	LEAQ (powers+16)(AX), R9

// MASKS sets K1 to K4 to the bytes that are left, CX of them, and R9 to where their powers begin, so that the last block gets
// the second.
#define MASKS \
	XORL R12, R12 \
	MOVQ $-1, R10 \
	BZHIQ CX, R10, R11 \
	KMOVQ R11, K1 \
	MOVQ CX, R13 \
	SUBQ $64, R13 \
	CMOVQLT R12, R13 \
	BZHIQ R13, R10, R11 \
	KMOVQ R11, K2 \
	MOVQ CX, R13 \
	SUBQ $128, R13 \
	CMOVQLT R12, R13 \
	BZHIQ R13, R10, R11 \
	KMOVQ R11, K3 \
	MOVQ CX, R13 \
	SUBQ $192, R13 \
	CMOVQLT R12, R13 \
	BZHIQ R13, R10, R11 \
	KMOVQ R11, K4 \
	ADDQ $15, CX \
	ANDQ $-16, CX \
	LEAQ (powers+256)(AX), R9 \
	SUBQ CX, R9

// END adds the block of lengths, n being that of the text in bytes, and leaves the tag at (R8).
#define END(n) \
	MOVQ n, R10 \
	SHLQ $3, R10 \
	VMOVQ R10, X19 \
	MOVL $128, R10 \
	VPINSRQ $1, R10, X19, X19 \
	VMOVDQU64 (powers+256)(AX), X24 \
	VPCLMULQDQ $0x00, X24, X19, X15 \
	VPCLMULQDQ $0x11, X24, X19, X16 \
	VPCLMULQDQ $0x01, X24, X19, X17 \
	VPCLMULQDQ $0x10, X24, X19, X18 \
	VPXORQ Z15, Z25, Z25 \
	VPXORQ Z16, Z26, Z26 \
	VPTERNLOGQ $0x96, Z17, Z18, Z27 \
	REDUCE \
	VPSHUFB X31, X23, X23 \
	VPXORQ (R8), X23, X23 \
	VMOVDQU64 X23, (R8) \
	VZEROUPPER

// func seal(k *keys, dst, src *byte, n int, nonce, aad, tag *byte)
TEXT ·seal(SB), NOSPLIT, $0-56
	MOVQ k+0(FP), AX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI
	MOVQ n+24(FP), CX
	MOVQ nonce+32(FP), BX
	MOVQ aad+40(FP), DX
	MOVQ tag+48(FP), R8
	BEGIN
	SUBQ $256, CX
	JLT  sealRest

sealMore:
	KEYSTREAM
	VPXORQ (SI), Z15, Z19
	VPXORQ 64(SI), Z16, Z20
	VPXORQ 128(SI), Z17, Z21
	VPXORQ 192(SI), Z18, Z22
	VMOVDQU64 Z19, (DI)
	VMOVDQU64 Z20, 64(DI)
	VMOVDQU64 Z21, 128(DI)
	VMOVDQU64 Z22, 192(DI)
	ADDQ $256, SI
	ADDQ $256, DI
	PRODUCTS
	REDUCE
	SUBQ $256, CX
	JGE  sealMore

sealRest:
	ADDQ $256, CX
	MASKS
	KEYSTREAM
	VMOVDQU8.Z (SI), K1, Z19
	VMOVDQU8.Z 64(SI), K2, Z20
	VMOVDQU8.Z 128(SI), K3, Z21
	VMOVDQU8.Z 192(SI), K4, Z22
	VPXORQ Z15, Z19, Z19
	VPXORQ Z16, Z20, Z20
	VPXORQ Z17, Z21, Z21
	VPXORQ Z18, Z22, Z22
	VMOVDQU8 Z19, K1, (DI)
	VMOVDQU8 Z20, K2, 64(DI)
	VMOVDQU8 Z21, K3, 128(DI)
	VMOVDQU8 Z22, K4, 192(DI)
	VMOVDQU8.Z Z19, K1, Z19
	VMOVDQU8.Z Z20, K2, Z20
	VMOVDQU8.Z Z21, K3, Z21
	VMOVDQU8.Z Z22, K4, Z22
	PRODUCTS
	END(n+24(FP))
	RET

// func open(k *keys, dst, src *byte, n int, nonce, aad, tag *byte)
TEXT ·open(SB), NOSPLIT, $0-56
	MOVQ k+0(FP), AX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI
	MOVQ n+24(FP), CX
	MOVQ nonce+32(FP), BX
	MOVQ aad+40(FP), DX
	MOVQ tag+48(FP), R8
	BEGIN
	SUBQ $256, CX
	JLT  openRest

openMore:
	KEYSTREAM
	VMOVDQU64 (SI), Z19
	VMOVDQU64 64(SI), Z20
	VMOVDQU64 128(SI), Z21
	VMOVDQU64 192(SI), Z22
	VPXORQ Z19, Z15, Z15
	VPXORQ Z20, Z16, Z16
	VPXORQ Z21, Z17, Z17
	VPXORQ Z22, Z18, Z18
	VMOVDQU64 Z15, (DI)
	VMOVDQU64 Z16, 64(DI)
	VMOVDQU64 Z17, 128(DI)
	VMOVDQU64 Z18, 192(DI)
	ADDQ $256, SI
	ADDQ $256, DI
	PRODUCTS
	REDUCE
	SUBQ $256, CX
	JGE  openMore

openRest:
	ADDQ $256, CX
	MASKS
	KEYSTREAM
	VMOVDQU8.Z (SI), K1, Z19
	VMOVDQU8.Z 64(SI), K2, Z20
	VMOVDQU8.Z 128(SI), K3, Z21
	VMOVDQU8.Z 192(SI), K4, Z22
	VPXORQ Z19, Z15, Z15
	VPXORQ Z20, Z16, Z16
	VPXORQ Z21, Z17, Z17
	VPXORQ Z22, Z18, Z18
	VMOVDQU8 Z15, K1, (DI)
	VMOVDQU8 Z16, K2, 64(DI)
	VMOVDQU8 Z17, K3, 128(DI)
	VMOVDQU8 Z18, K4, 192(DI)
	PRODUCTS
	END(n+24(FP))
	RET

// func subWord(w uint32) uint32
TEXT ·subWord(SB), NOSPLIT, $0-12
	MOVL w+0(FP), AX
	VMOVD AX, X0
	VPSHUFD $0, X0, X0
	VAESKEYGENASSIST $0, X0, X0
	VMOVD X0, AX
	MOVL AX, ret+8(FP)
	RET
