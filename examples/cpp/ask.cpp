// Answers questions about a text file, token by token, with the likeliest tokens. What the prompts have in common, the text,
// is computed once. Ctrl-C stops.
//
//     cargo build --release
//     ln -sf liblonggen.so target/release/liblonggen.so.0
//     c++ -std=c++17 -Iinclude examples/cpp/ask.cpp -Ltarget/release -llonggen -Wl,-rpath,$PWD/target/release -o ask
//     ./ask model.gguf README.md "What is this about?"

#include <longgen.hpp>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

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
int answer(longgen::Session &session, longgen::Sampler &sampler, const std::vector<std::uint32_t> &tokens,
           std::uint32_t max_tokens, const longgen::Cancel &cancel)
{
    const auto before = session.counters();
    const auto did = session.prompt(tokens, {}, &cancel);
    longgen::GenerateParams how;
    how.max_tokens = max_tokens;
    how.on_text = [](std::uint32_t, std::string_view part) { return bool(std::cout << part << std::flush); };
    how.cancel = &cancel;
    const auto result = session.generate(sampler, {}, how);
    std::cout << std::endl;
    if (result.reason == LG_STOP_CANCELLED) {
        std::cerr << "stopped\n";
        return 130;
    }
    const auto took = session.counters();
    std::fprintf(stderr, "%zu tokens of prompt in %.2f s, %zu of answer in %.2f s, %.1f MB\n", tokens.size(),
                 (took.prompt_ms - before.prompt_ms) / 1e3, result.n_tokens,
                 (took.generated_ms - before.generated_ms) / 1e3, static_cast<double>(session.n_bytes()) / 1e6);
    if (did.n_reused > 0)
        std::fprintf(stderr, "%zu tokens of the prompt were there already, %zu were computed\n", did.n_reused,
                     did.n_computed);
    return 0;
}

int ask(const char *path, const char *file, const std::vector<std::string> &questions, std::uint32_t max_tokens,
        const longgen::Cancel &cancel)
{
    longgen::ModelParams opening;
    opening.cancel = &cancel;
    const longgen::Model model(path, opening);

    const std::string text = read(file);
    std::vector<std::vector<std::uint32_t>> prompts;
    std::size_t longest = 0;
    for (const auto &question : questions) {
        const auto prompt = model.apply_chat_template({{"user", text + "\n\n" + question}});
        prompts.push_back(model.tokenize(prompt, LG_TOKENIZE_SPECIAL | LG_TOKENIZE_ADD_BOS));
        longest = std::max(longest, prompts.back().size());
    }
    if (longest + max_tokens > model.n_ctx_train())
        throw std::runtime_error("the text with the question: " + std::to_string(longest) + " tokens and up to " +
                                 std::to_string(max_tokens) + " of the answer do not fit into a context of " +
                                 std::to_string(model.n_ctx_train()));

    longgen::SessionParams params;
    params.n_ctx = static_cast<std::uint32_t>(longest) + max_tokens;
    longgen::Session session(model, params);
    longgen::Sampler sampler;
    for (const auto &prompt : prompts)
        if (const int status = answer(session, sampler, prompt, max_tokens, cancel))
            return status;
    return 0;
}

} // namespace

int main(int argc, char **argv)
{
    if (argc < 4) {
        std::cerr << "usage: " << argv[0] << " MODEL FILE QUESTION [TOKENS [QUESTION...]]\n";
        return 2;
    }
    try {
        longgen::Cancel cancel;
        const OnInterrupt guard(cancel);
        const auto max_tokens = argc > 4 ? static_cast<std::uint32_t>(std::strtoul(argv[4], nullptr, 10)) : 256;
        std::vector<std::string> questions{argv[3]};
        for (int i = 5; i < argc; i++)
            questions.emplace_back(argv[i]);
        return ask(argv[1], argv[2], questions, max_tokens, cancel);
    } catch (const longgen::Error &error) {
        std::cerr << longgen::status_str(error.code()) << ": " << error.what() << " (" << error.where() << ")\n";
        return error.code() == LG_ERR_CANCELLED ? 130 : 1;
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
