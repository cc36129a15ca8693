// Ask answers a question about a text file, token by token, with the likeliest tokens. Ctrl-C stops.
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
		fmt.Fprintf(os.Stderr, "usage: %s MODEL FILE QUESTION [TOKENS]\n", os.Args[0])
		os.Exit(2)
	}
	maxTokens := 256
	if len(os.Args) > 4 {
		maxTokens, _ = strconv.Atoi(os.Args[4])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := ask(ctx, os.Args[1], os.Args[2], os.Args[3], maxTokens)
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

func ask(ctx context.Context, path, file, question string, maxTokens int) error {
	model, err := longgen.Open(path)
	if err != nil {
		return err
	}
	defer model.Close()
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	tokens, err := model.Prompt(string(text) + "\n\n" + question)
	if err != nil {
		return err
	}
	n := len(tokens) + maxTokens
	if n > model.ContextLength() {
		return fmt.Errorf("the text with the question: %d tokens and up to %d of the answer do not fit into a context of %d",
			len(tokens), maxTokens, model.ContextLength())
	}
	session, err := model.NewSession(n)
	if err != nil {
		return err
	}
	defer session.Close()

	parts := make(chan string)
	printed := make(chan struct{})
	go func() {
		defer close(printed)
		for part := range parts {
			fmt.Print(part)
		}
	}()
	result, err := session.Generate(ctx, tokens, longgen.Options{MaxTokens: maxTokens}, parts)
	<-printed
	if err != nil {
		return err
	}
	fmt.Println()
	prompt, answer, err := session.Took()
	fmt.Fprintf(os.Stderr, "%d tokens of prompt in %.2f s, %d of answer in %.2f s, %.1f MB\n", len(tokens),
		prompt.Seconds(), result.Tokens, answer.Seconds(), float64(session.Bytes())/1e6)
	return err
}
