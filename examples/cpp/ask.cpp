// Answers a question about a text file, token by token, with the likeliest tokens. Ctrl-C stops.
//
//     cargo build --release
//     ln -sf liblonggen.so target/release/liblonggen.so.0
//     c++ -std=c++17 -Iinclude examples/cpp/ask.cpp -Ltarget/release -llonggen -Wl,-rpath,$PWD/target/release -o ask
//     ./ask model.gguf README.md "What is this about?"

#include <longgen.hpp>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>

namespace {

// Ctrl-C sets it; a handler cannot be given anything.
longgen::Cancel *interrupted;

// The first Ctrl-C stops the call at hand, a second one the program.
extern "C" void on_interrupt(int number)
{
    std::signal(number, SIG_DFL);
    interrupted->set();
}

// As long as it lives.
struct OnInterrupt {
    explicit OnInterrupt(longgen::Cancel &cancel)
    {
        interrupted = &cancel;
        std::signal(SIGINT, on_interrupt);
    }
    ~OnInterrupt() { std::signal(SIGINT, SIG_DFL); }
};

std::string read(const char *path)
{
    std::ifstream file(path, std::ios::binary);
    if (!file)
        throw std::runtime_error(std::string(path) + ": cannot be read");
    return {std::istreambuf_iterator<char>(file), {}};
}

// Gives what the program exits with.
int ask(const char *path, const char *file, const char *question, std::uint32_t max_tokens, const longgen::Cancel &cancel)
{
    longgen::ModelParams opening;
    opening.cancel = &cancel;
    const longgen::Model model(path, opening);

    const std::string text = read(file) + "\n\n" + question;
    const auto tokens =
        model.tokenize(model.apply_chat_template({{"user", text}}), LG_TOKENIZE_SPECIAL | LG_TOKENIZE_ADD_BOS);
    if (tokens.size() + max_tokens > model.n_ctx_train())
        throw std::runtime_error("the text with the question: " + std::to_string(tokens.size()) + " tokens and up to " +
                                 std::to_string(max_tokens) + " of the answer do not fit into a context of " +
                                 std::to_string(model.n_ctx_train()));

    longgen::SessionParams params;
    params.n_ctx = static_cast<std::uint32_t>(tokens.size()) + max_tokens;
    longgen::Session session(model, params);
    longgen::Sampler sampler;
    longgen::GenerateParams how;
    how.max_tokens = max_tokens;
    how.on_text = [](std::uint32_t, std::string_view part) { return bool(std::cout << part << std::flush); };
    how.cancel = &cancel;
    const auto result = session.generate(sampler, tokens, how);
    std::cout << std::endl;
    if (result.reason == LG_STOP_CANCELLED) {
        std::cerr << "stopped\n";
        return 130;
    }
    const auto took = session.counters();
    std::fprintf(stderr, "%zu tokens of prompt in %.2f s, %zu of answer in %.2f s, %.1f MB\n", tokens.size(),
                 took.prompt_ms / 1e3, result.n_tokens, took.generated_ms / 1e3,
                 static_cast<double>(session.n_bytes()) / 1e6);
    return 0;
}

} // namespace

int main(int argc, char **argv)
{
    if (argc < 4) {
        std::cerr << "usage: " << argv[0] << " MODEL FILE QUESTION [TOKENS]\n";
        return 2;
    }
    try {
        longgen::Cancel cancel;
        const OnInterrupt guard(cancel);
        const auto max_tokens = argc > 4 ? static_cast<std::uint32_t>(std::strtoul(argv[4], nullptr, 10)) : 256;
        return ask(argv[1], argv[2], argv[3], max_tokens, cancel);
    } catch (const longgen::Error &error) {
        std::cerr << longgen::status_str(error.code()) << ": " << error.what() << " (" << error.where() << ")\n";
        return error.code() == LG_ERR_CANCELLED ? 130 : 1;
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
