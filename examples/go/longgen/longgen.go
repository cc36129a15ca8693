// Package longgen runs long-context language models in this process, by liblonggen.so. What a call does is written in
// include/longgen.h.
//
// What Open, NewSession and Load give must be closed. A Model may be used by any number of goroutines at once, a Session by one at
// a time.
package longgen

/*
#cgo CFLAGS: -I${SRCDIR}/../../../include
#cgo LDFLAGS: -llonggen
#include <longgen.h>

#include <stdlib.h>

bool longgenOnProgress(uintptr_t user, size_t n_done, size_t n_total);
bool longgenOnText(uintptr_t user, uint32_t token, char *text, size_t n_bytes);

static bool on_progress(void *user, size_t n_done, size_t n_total)
{
    return longgenOnProgress((uintptr_t)user, n_done, n_total);
}

static bool on_text(void *user, uint32_t token, const char *text, size_t n_bytes)
{
    return longgenOnText((uintptr_t)user, token, (char *)text, n_bytes);
}

static lg_status generate(lg_session *session, lg_sampler *sampler, const uint32_t *tokens, size_t n_tokens,
                          uint32_t max_tokens, uintptr_t user, const lg_cancel *cancel, lg_generate_result *result,
                          lg_error *error)
{
    const lg_generate_params params = {.struct_size = sizeof params,
                                       .max_tokens = max_tokens,
                                       .on_progress = on_progress,
                                       .on_text = on_text,
                                       .user = (void *)user,
                                       .cancel = cancel};
    return lg_session_generate(session, sampler, tokens, n_tokens, &params, result, error);
}

static lg_status prompt(lg_session *session, const uint32_t *tokens, size_t n_tokens, uintptr_t user,
                        const lg_cancel *cancel, lg_prompt_result *result, lg_error *error)
{
    return lg_session_prompt(session, tokens, n_tokens, on_progress, (void *)user, cancel, result, error);
}

static lg_status save(const lg_session *session, const char *path, uintptr_t user, const lg_cancel *cancel,
                      lg_error *error)
{
    return lg_session_save(session, path, on_progress, (void *)user, cancel, error);
}

static lg_status load(const lg_model *model, const char *path, const lg_session_params *params, uintptr_t user,
                      const lg_cancel *cancel, lg_session **session, lg_error *error)
{
    return lg_session_load(model, path, params, on_progress, (void *)user, cancel, session, error);
}

static lg_status apply_chat_template(const lg_model *model, const char *role, size_t role_bytes, const char *content,
                                     size_t content_bytes, char *text, size_t cap, size_t *n_bytes, lg_error *error)
{
    const lg_message message = {role, role_bytes, content, content_bytes};
    return lg_model_apply_chat_template(model, &message, 1, NULL, 0, LG_CHAT_ADD_GENERATION_PROMPT, text, cap, n_bytes,
                                        error);
}
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"runtime/cgo"
	"time"
	"unsafe"
)

// Error is what a failed call has to say.
type Error struct {
	Code    uint32
	Message string
	Where   string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s (%s)", C.GoString(C.lg_status_str(C.uint32_t(e.Code))), e.Message, e.Where)
}

// call runs a function that takes an lg_error last.
func call(function func(*C.lg_error) C.lg_status) error {
	var e C.lg_error
	e.struct_size = C.sizeof_lg_error
	if function(&e) == C.LG_OK {
		return nil
	}
	return &Error{uint32(e.code), C.GoString(&e.message[0]), C.GoString(&e.where[0])}
}

// Model is an open model.
type Model struct {
	c *C.lg_model
}

// Open opens a model file.
func Open(path string) (*Model, error) {
	if version := C.lg_abi_version(); version != C.LG_ABI_VERSION {
		return nil, fmt.Errorf("liblonggen.so has the ABI %d, this program needs %d", version, C.LG_ABI_VERSION)
	}
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	m := &Model{}
	err := call(func(e *C.lg_error) C.lg_status { return C.lg_model_open(name, nil, &m.c, e) })
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Close frees the model. Its sessions go on.
func (m *Model) Close() {
	C.lg_model_free(m.c)
	m.c = nil
}

// ContextLength is the longest context, in tokens, that the model was trained for.
func (m *Model) ContextLength() int {
	return int(C.lg_model_n_ctx_train(m.c))
}

// Prompt is what a user's message is to the model: the tokens of what its chat template makes of it.
func (m *Model) Prompt(message string) ([]uint32, error) {
	role := []byte("user")
	content := []byte(message)
	text, err := filled(func(text *byte, cap C.size_t, n *C.size_t, e *C.lg_error) C.lg_status {
		return C.apply_chat_template(m.c, chars(role), C.size_t(len(role)), chars(content), C.size_t(len(content)),
			(*C.char)(unsafe.Pointer(text)), cap, n, e)
	})
	if err != nil {
		return nil, err
	}
	return filled(func(tokens *uint32, cap C.size_t, n *C.size_t, e *C.lg_error) C.lg_status {
		return C.lg_model_tokenize(m.c, chars(text), C.size_t(len(text)), C.LG_TOKENIZE_SPECIAL|C.LG_TOKENIZE_ADD_BOS,
			(*C.uint32_t)(tokens), cap, n, e)
	})
}

// Session is one sequence of tokens with its memory, and the sampler that goes on with it: it takes the likeliest tokens.
type Session struct {
	c       *C.lg_session
	sampler *C.lg_sampler
}

// NewSession opens a session for so many tokens.
func (m *Model) NewSession(contextLength int) (*Session, error) {
	return newSession(contextLength, func(params *C.lg_session_params, c **C.lg_session) error {
		return call(func(e *C.lg_error) C.lg_status { return C.lg_session_new(m.c, params, c, e) })
	})
}

// Load opens a session for so many tokens with what Save has written: it goes on as the one that was saved would have, and
// Prompt computes no more than what is new. progress, unless nil, is told bytes; false from it stops the call.
func (m *Model) Load(ctx context.Context, path string, contextLength int, progress Progress) (*Session, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	return newSession(contextLength, func(params *C.lg_session_params, c **C.lg_session) error {
		return stoppable(told{ctx: ctx, progress: progress}, func(user C.uintptr_t, cancel *C.lg_cancel) error {
			return call(func(e *C.lg_error) C.lg_status { return C.load(m.c, name, params, user, cancel, c, e) })
		})
	})
}

func newSession(contextLength int, open func(*C.lg_session_params, **C.lg_session) error) (*Session, error) {
	s := &Session{}
	params := C.lg_session_params{struct_size: C.sizeof_lg_session_params, n_ctx: C.uint32_t(contextLength)}
	err := open(&params, &s.c)
	if err == nil {
		err = call(func(e *C.lg_error) C.lg_status { return C.lg_sampler_new(nil, &s.sampler, e) })
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close frees the session.
func (s *Session) Close() {
	C.lg_sampler_free(s.sampler)
	C.lg_session_free(s.c)
	s.sampler, s.c = nil, nil
}

// Bytes is how much memory the session takes.
func (s *Session) Bytes() uint64 {
	return uint64(C.lg_session_n_bytes(s.c))
}

// Took is how long the session has computed tokens of prompts, and of answers.
func (s *Session) Took() (prompt, answer time.Duration, err error) {
	counters := C.lg_counters{struct_size: C.sizeof_lg_counters}
	err = call(func(e *C.lg_error) C.lg_status { return C.lg_session_counters(s.c, &counters, e) })
	prompt = time.Duration(float64(counters.prompt_ms) * float64(time.Millisecond))
	answer = time.Duration(float64(counters.generated_ms) * float64(time.Millisecond))
	return prompt, answer, err
}

// Len is how many tokens the session holds.
func (s *Session) Len() int {
	return int(C.lg_session_n_tokens(s.c))
}

// Prompted is what Session.Prompt has found in the session, and done.
type Prompted struct {
	// Common is how many tokens at the beginning of the prompt the session held.
	Common int
	// Reused is how many of them were kept. One that ends the prompt is computed again if its logits are not there.
	Reused int
	// Computed is how many tokens were computed.
	Computed int
	// LimitingLayers is how many layers had given up what they needed, where fewer tokens were kept than could have been.
	LimitingLayers int
	// LimitingLayer is the first of them, or -1.
	LimitingLayer int
}

// Prompt makes the session hold tokens and nothing else: it keeps what the session holds of them already and computes the
// rest, so that every prompt of a conversation can be given as a whole. Generate without tokens answers it. progress, unless
// nil, is told how many of the tokens to compute are done; false from it stops the call. When ctx is done the call stops soon
// and returns ctx.Err(); the session keeps what was computed.
func (s *Session) Prompt(ctx context.Context, tokens []uint32, progress Progress) (Prompted, error) {
	result := C.lg_prompt_result{struct_size: C.sizeof_lg_prompt_result}
	err := stoppable(told{ctx: ctx, progress: progress}, func(user C.uintptr_t, cancel *C.lg_cancel) error {
		return call(func(e *C.lg_error) C.lg_status {
			return C.prompt(s.c, (*C.uint32_t)(first(tokens)), C.size_t(len(tokens)), user, cancel, &result, e)
		})
	})
	if err != nil {
		return Prompted{LimitingLayer: -1}, err
	}
	did := Prompted{int(result.n_common), int(result.n_reused), int(result.n_computed), int(result.n_limiting_layers), -1}
	if result.limiting_layer != C.LG_INDEX_NONE {
		did.LimitingLayer = int(result.limiting_layer)
	}
	return did, nil
}

// Rewind goes back to the first n tokens, and returns how many the session holds then: n, or fewer where layers have given
// up what they would need and no restore point has it.
func (s *Session) Rewind(n int) (int, error) {
	var kept C.size_t
	err := call(func(e *C.lg_error) C.lg_status { return C.lg_session_rewind(s.c, C.size_t(n), &kept, e) })
	return int(kept), err
}

// RestorePoints are the positions, rising, that the session can go back to although layers have given up a part of the
// context since.
func (s *Session) RestorePoints() ([]int, error) {
	points, err := filled(func(positions *uintptr, cap C.size_t, n *C.size_t, e *C.lg_error) C.lg_status {
		return C.lg_session_restore_points(s.c, (*C.size_t)(unsafe.Pointer(positions)), cap, n, e)
	})
	positions := make([]int, len(points))
	for i, point := range points {
		positions[i] = int(point)
	}
	return positions, err
}

// RestoreBytes is how much memory the restore points take now, beside the session's own.
func (s *Session) RestoreBytes() uint64 {
	return uint64(C.lg_session_restore_bytes(s.c))
}

// Save writes the session to a file, for Load. A file that is there is replaced when the new one is complete. progress,
// unless nil, is told bytes; false from it stops the call, and so does ctx.
func (s *Session) Save(ctx context.Context, path string, progress Progress) error {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	return stoppable(told{ctx: ctx, progress: progress}, func(user C.uintptr_t, cancel *C.lg_cancel) error {
		return call(func(e *C.lg_error) C.lg_status { return C.save(s.c, name, user, cancel, e) })
	})
}

// Progress is told how much is done, of how much; false stops the call.
type Progress func(done, total int) bool

// Options say how to generate an answer.
type Options struct {
	// MaxTokens is how many tokens the answer has at most; 0 means any number.
	MaxTokens int
	// Progress, unless nil, is told how many tokens of the prompt are done, of how many. False stops the call.
	Progress Progress
}

// StopReason is why an answer ended.
type StopReason uint32

// The reasons of longgen.h.
const (
	StopEnd         StopReason = C.LG_STOP_END
	StopLength      StopReason = C.LG_STOP_LENGTH
	StopString      StopReason = C.LG_STOP_STRING
	StopCallback    StopReason = C.LG_STOP_CALLBACK
	StopContextFull StopReason = C.LG_STOP_CONTEXT_FULL
	StopCancelled   StopReason = C.LG_STOP_CANCELLED
)

// TokenNone is a token that does not exist.
const TokenNone uint32 = C.LG_TOKEN_NONE

// Result is how an answer ended.
type Result struct {
	// Tokens is how many tokens the answer has.
	Tokens int
	Reason StopReason
	// PendingToken is the last one if the session does not hold it yet; to go on, generate behind it. Else TokenNone.
	PendingToken uint32
	// EndToken is the token with which the model ended the answer, or TokenNone.
	EndToken uint32
}

// told is what the callbacks are told with: where an answer goes, and until when.
type told struct {
	ctx      context.Context
	progress Progress
	text     chan<- string
}

// Generate appends tokens, which may be none behind a prompt, and generates an answer. It sends the answer's text piece by
// piece, and closes the channel. When ctx is done it stops soon and returns ctx.Err(), with what has come of an answer that
// had begun.
func (s *Session) Generate(ctx context.Context, tokens []uint32, options Options, text chan<- string) (Result, error) {
	defer close(text)
	var ended Result
	err := stoppable(told{ctx, options.Progress, text}, func(user C.uintptr_t, cancel *C.lg_cancel) error {
		result := C.lg_generate_result{struct_size: C.sizeof_lg_generate_result}
		err := call(func(e *C.lg_error) C.lg_status {
			return C.generate(s.c, s.sampler, (*C.uint32_t)(first(tokens)), C.size_t(len(tokens)),
				C.uint32_t(options.MaxTokens), user, cancel, &result, e)
		})
		ended = Result{int(result.n_tokens), StopReason(result.reason), uint32(result.pending_token), uint32(result.end_token)}
		return err
	})
	if isStopped := ended.Reason == StopCancelled || ended.Reason == StopCallback; err == nil && isStopped {
		err = ctx.Err()
	}
	return ended, err
}

// stoppable calls a function with what its callbacks are told with, and with what stops it when the context is done. It
// returns ctx.Err() then.
func stoppable(t told, function func(user C.uintptr_t, cancel *C.lg_cancel) error) error {
	var cancel *C.lg_cancel
	if err := call(func(e *C.lg_error) C.lg_status { return C.lg_cancel_new(&cancel, e) }); err != nil {
		return err
	}
	defer C.lg_cancel_free(cancel)
	finished, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-t.ctx.Done():
			C.lg_cancel_set(cancel)
		case <-finished:
		}
	}()
	defer func() { close(finished); <-watched }()

	user := cgo.NewHandle(t)
	defer user.Delete()
	err := function(C.uintptr_t(user), cancel)
	var failed *Error
	// Unless it was the progress that stopped it.
	if errors.As(err, &failed) && failed.Code == C.LG_ERR_CANCELLED && t.ctx.Err() != nil {
		return t.ctx.Err()
	}
	return err
}

// filled is what a function gives that takes a buffer, its room, and where to write how much there is.
func filled[T byte | uint32 | uintptr](function func(*T, C.size_t, *C.size_t, *C.lg_error) C.lg_status) ([]T, error) {
	var buffer []T
	for {
		var n C.size_t
		err := call(func(e *C.lg_error) C.lg_status { return function(first(buffer), C.size_t(len(buffer)), &n, e) })
		// Also where the buffer is too small, which is an error, n says how much is needed.
		if int(n) <= len(buffer) {
			return buffer[:n], err
		}
		buffer = make([]T, n)
	}
}

// first is where a slice lies.
func first[T any](slice []T) *T {
	if len(slice) == 0 {
		return nil
	}
	return &slice[0]
}

func chars(text []byte) *C.char {
	return (*C.char)(unsafe.Pointer(first(text)))
}
