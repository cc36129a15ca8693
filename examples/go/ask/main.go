// Ask answers questions about a text file, token by token, with the likeliest tokens. What the prompts have in common, the
// text, is computed once. Ctrl-C stops.
//
//	cargo build --release
//	ln -sf liblonggen.so target/release/liblonggen.so.0
//	export CGO_LDFLAGS="-L$PWD/target/release -Wl,-rpath,$PWD/target/release"
//	(cd examples/go && go build -o ../../ask ./ask)
//	./ask model.gguf README.md "What is this about?"
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"

	"longgen.example/longgen"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintf(os.Stderr, "usage: %s MODEL FILE QUESTION [TOKENS [QUESTION...]]\n", os.Args[0])
		os.Exit(2)
	}
	maxTokens, questions := 256, os.Args[3:4:4]
	if len(os.Args) > 4 {
		maxTokens, _ = strconv.Atoi(os.Args[4])
		questions = append(questions, os.Args[5:]...)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := ask(ctx, os.Args[1], os.Args[2], questions, maxTokens)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	switch {
	case errors.Is(err, context.Canceled):
		os.Exit(130)
	case err != nil:
		os.Exit(1)
	}
}

func ask(ctx context.Context, path, file string, questions []string, maxTokens int) error {
	model, err := longgen.Open(path)
	if err != nil {
		return err
	}
	defer model.Close()
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	contextLength := 0
	prompts := make([][]uint32, len(questions))
	for i, question := range questions {
		if prompts[i], err = model.Prompt(string(text) + "\n\n" + question); err != nil {
			return err
		}
		n := len(prompts[i]) + maxTokens
		if n > model.ContextLength() {
			return fmt.Errorf("the text with the question: %d tokens and up to %d of the answer do not fit into a context of %d",
				len(prompts[i]), maxTokens, model.ContextLength())
		}
		if n > contextLength {
			contextLength = n
		}
	}
	session, err := model.NewSession(contextLength)
	if err != nil {
		return err
	}
	defer session.Close()
	for _, prompt := range prompts {
		if err := answer(ctx, session, prompt, maxTokens); err != nil {
			return err
		}
	}
	return nil
}

func answer(ctx context.Context, session *longgen.Session, prompt []uint32, maxTokens int) error {
	promptBefore, answerBefore, err := session.Took()
	if err != nil {
		return err
	}
	did, err := session.Prompt(ctx, prompt, nil)
	if err != nil {
		return err
	}
	parts := make(chan string)
	printed := make(chan struct{})
	go func() {
		defer close(printed)
		for part := range parts {
			fmt.Print(part)
		}
	}()
	result, err := session.Generate(ctx, nil, longgen.Options{MaxTokens: maxTokens}, parts)
	<-printed
	if err != nil {
		return err
	}
	fmt.Println()
	promptTook, answerTook, err := session.Took()
	fmt.Fprintf(os.Stderr, "%d tokens of prompt in %.2f s, %d of answer in %.2f s, %.1f MB\n", len(prompt),
		(promptTook - promptBefore).Seconds(), result.Tokens, (answerTook - answerBefore).Seconds(),
		float64(session.Bytes())/1e6)
	if did.Reused > 0 {
		fmt.Fprintf(os.Stderr, "%d tokens of the prompt were there already, %d were computed\n", did.Reused, did.Computed)
	}
	return err
}
