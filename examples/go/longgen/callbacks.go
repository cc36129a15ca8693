package longgen

// What Go exports stands in a file of its own, whose preamble defines nothing.

/*
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
*/
import "C"

import "runtime/cgo"

//export longgenOnProgress
func longgenOnProgress(user C.uintptr_t, done, total C.size_t) C.bool {
	progress := cgo.Handle(user).Value().(told).progress
	return progress == nil || C.bool(progress(int(done), int(total)))
}

//export longgenOnText
func longgenOnText(user C.uintptr_t, token C.uint32_t, text *C.char, n C.size_t) C.bool {
	answer := cgo.Handle(user).Value().(told)
	if n == 0 {
		return true
	}
	select {
	case answer.text <- C.GoStringN(text, C.int(n)):
		return true
	case <-answer.ctx.Done():
		return false
	}
}
