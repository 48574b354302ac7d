# SPDX-License-Identifier: Apache-2.0
#
# A guest that notices when its memory is wrong: one boot sector, in GNU as.
#
# It fills the RAM from FIRST to LAST with words that hold their own address, and then goes over it again and
# again: each word must still be what the pass before left there, address + pass - 1, and becomes address + pass.
# A page that is lost, old, or in the wrong place is therefore found at the next pass at the latest.
#
# On the first serial port it says "pass P block N good" after every BLOCK bytes, N counting from 1 without end.
# At a wrong word it says "WRONG word at ADDRESS" and stops.
#
# It writes as fast as it can; or, with `as --defsym TICKS=N`, not more than CHUNK bytes in N ticks of the timer, of
# which there are 1193182 a second and 65535 at most; the processor rests meanwhile. LAST can be set in the same way.
# It uses no other hardware.

	.set	FIRST, 32 << 20
	.set	BLOCK, 8 << 20
	.ifndef	LAST
	.set	LAST, 160 << 20		# a whole number of blocks after FIRST
	.endif
	.ifndef	CHUNK
	.set	CHUNK, 128 << 10	# a block is a whole number of chunks
	.endif
	.ifndef	TICKS
	.set	TICKS, 0
	.endif
	.set	IDT, 0x600
	.set	COM1, 0x3f8
	.set	STACK, 0x7c00

	.globl	_start
	.code16
_start:
	ljmp	$0, $1f
1:	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %ss
	mov	$STACK, %sp
	mov	$0x2401, %ax		# BIOS: all address lines on
	int	$0x15
	cli
	lgdt	gdt_pointer
	mov	%cr0, %eax
	or	$1, %al			# protected mode
	mov	%eax, %cr0
	ljmp	$8, $protected

	.code32
protected:
	mov	$16, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %ss
	mov	$STACK, %esp

	.if	TICKS
	movl	$(8 << 16) + 0x7c00 + tick - _start, IDT + 8 * 8	# its interrupt is 8, as the BIOS has left it
	movl	$0x8e00, IDT + 8 * 8 + 4
	lidt	idt_pointer
	mov	$0xfe, %al		# and no other one
	out	%al, $0x21
	mov	$0x34, %al		# every TICKS
	out	%al, $0x43
	mov	$TICKS & 0xff, %al
	out	%al, $0x40
	mov	$TICKS >> 8, %al
	out	%al, $0x40
	.endif

	mov	$FIRST, %esi
fill:	mov	%esi, (%esi)
	add	$4, %esi
	cmp	$LAST, %esi
	jne	fill

	# esi: the word's address; ecx, edx: the end of the block, of the chunk; ebp: the pass; edi: blocks done
	xor	%ebp, %ebp
	xor	%edi, %edi
pass:	inc	%ebp
	mov	$FIRST, %esi
block:	lea	BLOCK(%esi), %ecx
chunk:	lea	CHUNK(%esi), %edx
word:	lea	-1(%esi, %ebp), %eax
	cmp	%eax, (%esi)
	jne	wrong
	inc	%eax
	mov	%eax, (%esi)
	add	$4, %esi
	cmp	%edx, %esi
	jne	word
	.if	TICKS
	sti
	hlt				# until the next tick, if it has not been already
	cli
	.endif
	cmp	%ecx, %esi
	jne	chunk

	inc	%edi
	mov	$text_pass, %ebx
	call	print
	mov	%ebp, %eax
	mov	$10, %ecx
	call	print_number
	mov	$text_block, %ebx
	call	print
	mov	%edi, %eax
	mov	$10, %ecx
	call	print_number
	mov	$text_good, %ebx
	call	print

	cmp	$LAST, %esi
	jne	block
	jmp	pass

wrong:	mov	$text_wrong, %ebx
	call	print
	mov	%esi, %eax
	mov	$16, %ecx
	call	print_number
	mov	$text_end, %ebx
	call	print
stop:	hlt				# interrupts are off: for good
	jmp	stop

	.if	TICKS
tick:	push	%eax
	mov	$0x20, %al
	out	%al, $0x20
	pop	%eax
	iret
	.endif

# The text at ebx, up to its zero byte. Uses eax, ebx, edx.
print:	mov	(%ebx), %al
	inc	%ebx
	test	%al, %al
	jz	1f
	call	print_character
	jmp	print
1:	ret

# The number in eax, in base ecx. Uses eax, edx.
print_number:
	xor	%edx, %edx
	div	%ecx
	push	%edx
	test	%eax, %eax
	jz	1f
	call	print_number
1:	pop	%edx
	mov	digits(%edx), %al

# The character in al. Uses eax, edx.
print_character:
	mov	%al, %ah
	mov	$COM1 + 5, %dx
1:	in	%dx, %al		# wait for room in the transmitter
	test	$0x20, %al
	jz	1b
	mov	%ah, %al
	mov	$COM1, %dx
	out	%al, %dx
	ret

digits:		.ascii	"0123456789abcdef"
text_pass:	.asciz	"pass "
text_block:	.asciz	" block "
text_good:	.asciz	" good\n"
text_wrong:	.asciz	"WRONG word at 0x"
text_end:	.asciz	"\n"

	.balign	8
gdt:	.quad	0
	.quad	0x00cf9a000000ffff	# 8: code, all 4 GiB
	.quad	0x00cf92000000ffff	# 16: data, all 4 GiB
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt
idt_pointer:
	.word	9 * 8 - 1
	.long	IDT

	.org	510
	.word	0xaa55
