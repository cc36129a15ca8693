// longgen.hpp gives what longgen.h gives, throws what it says, and lets exceptions of callbacks out.
// usage: cpp MODEL NOWHERE, a tiny model with a chat template and metadata, and a path where no file is
#include "check.h"

#include <longgen.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <stdexcept>
#if __cplusplus >= 202002L
#include <span>
#endif

namespace lg = longgen;
using Tokens = std::vector<uint32_t>;

// In cpp_part.cpp, which includes the header, too.
std::string error_of_another_unit(const lg::Model &model);

namespace {

constexpr uint32_t N_CTX = 200;

// The call throws this status, and the error tells reason and function.
template <class Call> void refused(lg_status status, const std::string &where, Call call)
{
    try {
        call();
    } catch (const lg::Error &error) {
        if (error.code() != status || error.where() != where || error.what()[0] == '\0')
            fprintf(stderr, "%s, expected %s: %s: %s\n", error.where(), where.c_str(), lg::status_str(error.code()),
                    error.what());
        CHECK(error.code() == status && error.where() == where && error.what()[0] != '\0');
        return;
    }
    fprintf(stderr, "%s succeeds\n", where.c_str());
    CHECK(false);
}

// What only a callback throws.
struct Thrown : std::runtime_error {
    Thrown() : std::runtime_error("thrown") {}
};

template <class Call> bool throws(Call call)
{
    try {
        call();
    } catch (const Thrown &) {
        return true;
    }
    return false;
}

lg::Session new_session(const lg::Model &model)
{
    lg::SessionParams params;
    params.n_ctx = N_CTX;
    params.chunk_tokens = 16;
    return lg::Session(model, params);
}

template <class Handle> void moves_and_does_not_copy()
{
    static_assert(!std::is_copy_constructible_v<Handle> && !std::is_copy_assignable_v<Handle>);
    static_assert(std::is_nothrow_move_constructible_v<Handle> && std::is_nothrow_move_assignable_v<Handle>);
}

void handles(const lg::Model &model)
{
    moves_and_does_not_copy<lg::Model>();
    moves_and_does_not_copy<lg::Session>();
    moves_and_does_not_copy<lg::Sampler>();
    moves_and_does_not_copy<lg::TextStream>();
    moves_and_does_not_copy<lg::Cancel>();

    lg::Session session = new_session(model);
    session.prefill(Tokens{1, 2, 3});
    lg::Session other = std::move(session);
    CHECK(other.n_tokens() == 3 && session.n_tokens() == 0 && session.get() == nullptr);
    refused(LG_ERR_INVALID, "lg_session_decode", [&] { session.decode(1); });
    session = std::move(other);
    CHECK(session.n_tokens() == 3);

    lg::TextStream stream, moved = std::move(stream);
    CHECK(moved.push("a") == "a");
    lg::Cancel cancel, taken = std::move(cancel);
    cancel.set(), taken.set();
    lg::Sampler sampler, chooses = std::move(sampler);
    CHECK(chooses.sample(session) < model.n_vocab());
}

void errors_are_exceptions(const char *nowhere)
{
    try {
        lg::Model model(nowhere);
        CHECK(false);
    } catch (const std::exception &error) {
        CHECK(std::string(error.what()).find(nowhere) != std::string::npos);
    }
    refused(LG_ERR_NOT_FOUND, "lg_model_open", [&] { lg::Model model(nowhere); });
}

void versions()
{
    CHECK(lg::version() == LG_VERSION && lg::abi_version() == LG_ABI_VERSION);
    CHECK(lg::version_str() == std::string(LG_VERSION_STR) && lg::build_info()[0] != '\0');
    CHECK(lg::status_str(LG_ERR_IO) == std::string(lg_status_str(LG_ERR_IO)));
}

void opening(const char *path)
{
    size_t last = 0, total = 1, n_lines = 0;
    lg::ModelParams params;
    params.device = LG_DEVICE_CPU;
    params.n_threads = 1;
    params.verify = 1;
    params.on_progress = [&](size_t n_done, size_t n_total) {
        CHECK(last <= n_done && n_done <= n_total);
        last = n_done, total = n_total;
        return true;
    };
    params.on_log = [&](uint32_t level, std::string_view line) { n_lines += level == LG_LOG_INFO && !line.empty(); };
    CHECK(lg::Model(path, params).device() == "CPU, 1 threads");
    CHECK(last == total && n_lines >= 3);

    // At the first call and at the last, when there is nothing left to stop.
    for (const bool at_once : {true, false}) {
        size_t n_calls = 0;
        params.on_progress = [&](size_t n_done, size_t n_total) {
            n_calls++;
            if (at_once || n_done == n_total)
                throw Thrown();
            return true;
        };
        CHECK(throws([&] { lg::Model model(path, params); }));
        CHECK(at_once ? n_calls == 1 : n_calls > 1);
        params.on_progress = [&](size_t n_done, size_t n_total) { return !at_once && n_done < n_total; };
        refused(LG_ERR_CANCELLED, "lg_model_open", [&] { lg::Model model(path, params); });
    }
    params.on_progress = nullptr;
    params.on_log = [](uint32_t, std::string_view) { throw Thrown(); };
    CHECK(throws([&] { lg::Model model(path, params); }));

    lg::Cancel cancel;
    params.on_log = nullptr;
    params.cancel = &cancel;
    cancel.set();
    refused(LG_ERR_CANCELLED, "lg_model_open", [&] { lg::Model model(path, params); });
    cancel.reset();
    lg::Model opened(path, params);
    params.vocab_only = 1;
    refused(LG_ERR_INVALID, "lg_session_new", [&] { lg::Session session{lg::Model(path, params)}; });
}

void facts(const lg::Model &model)
{
    const lg_model *c = model.get();
    CHECK(model.architecture() == lg_model_architecture(c) && model.device() == lg_model_device(c));
    CHECK(model.n_vocab() == lg_model_n_vocab(c) && model.n_ctx_train() == lg_model_n_ctx_train(c));
    CHECK(model.n_layers() == lg_model_n_layers(c) && model.n_heads() == lg_model_n_heads(c));
    CHECK(model.n_kv_heads() == lg_model_n_kv_heads(c) && model.head_dim() == lg_model_head_dim(c));
    CHECK(model.d_model() == lg_model_d_model(c) && model.n_params() == lg_model_n_params(c));
    CHECK(model.n_bytes() == lg_model_n_bytes(c) && model.n_bytes() > model.n_params());
    const uint32_t bos = model.special_token(LG_SPECIAL_BOS), eos = model.special_token(LG_SPECIAL_EOS);
    CHECK(bos == lg_model_special_token(c, LG_SPECIAL_BOS) && eos == lg_model_special_token(c, LG_SPECIAL_EOS));
    CHECK(model.is_end_of_generation(eos) && !model.is_end_of_generation(bos));
    CHECK(model.is_special(bos) && !model.is_special(65));

    bool has_blocks = false;
    for (uint32_t layer = 0; layer < model.n_layers(); layer++) {
        lg_error error = {};
        error.struct_size = sizeof error;
        lg_layer_attention attention = {};
        attention.struct_size = sizeof attention;
        CALL(lg_model_layer_attention, (c, layer, &attention, &error));
        const lg::LayerAttention same = model.layer_attention(layer);
        CHECK(memcmp(static_cast<const lg_layer_attention *>(&same), &attention, sizeof attention) == 0);
        const Tokens phases = model.layer_phases(layer);
        CHECK(phases.size() == model.n_heads());
        has_blocks = has_blocks || std::accumulate(phases.begin(), phases.end(), 0u) > 0;
    }
    CHECK(has_blocks);
    refused(LG_ERR_INVALID, "lg_model_layer_attention", [&] { model.layer_attention(model.n_layers()); });
    refused(LG_ERR_INVALID, "lg_model_layer_phases", [&] { model.layer_phases(model.n_layers()); });
}

void metadata(const lg::Model &model)
{
    bool is_there = false;
    for (size_t i = 0; i < model.n_metadata(); i++)
        is_there = is_there || model.metadata_key(i) == "test.text";
    CHECK(is_there && model.n_metadata() == lg_model_n_metadata(model.get()));
    refused(LG_ERR_INVALID, "lg_model_metadata_key", [&] { model.metadata_key(model.n_metadata()); });
    refused(LG_ERR_NOT_FOUND, "lg_model_metadata_info", [&] { model.metadata_info("test.none"); });

    CHECK(model.metadata_u64("test.u64") == UINT64_MAX && model.metadata_i64("test.i64") == -5);
    CHECK(model.metadata_f64("test.f64") == 0.1 && model.metadata_bool("test.bool"));
    CHECK(model.metadata_text("test.text") == std::string("a\0é", 4) && model.metadata_text("test.empty").empty());
    const lg::MetadataInfo info = model.metadata_info("test.array");
    CHECK(info.type == LG_METADATA_U64 && info.n_elements == 3 && info.is_array);
    CHECK(model.metadata_u64("test.array", 2) == 9 && !model.metadata_info("test.u64").is_array);
    refused(LG_ERR_INVALID, "lg_model_metadata_u64", [&] { model.metadata_u64("test.array", 3); });
    refused(LG_ERR_INVALID, "lg_model_metadata_text", [&] { model.metadata_text("test.u64"); });
}

void memory(const lg::Model &model)
{
    lg::SessionParams params;
    params.n_ctx = N_CTX;
    params.kv_type = LG_KV_TYPE_F32;
    const lg::MemoryPlan plan = model.plan(params);
    CHECK(plan.n_ctx == N_CTX && plan.total_bytes > plan.kv_bytes && model.plan().n_ctx == model.n_ctx_train());
    uint64_t kv_bytes = 0;
    for (uint32_t layer = 0; layer < model.n_layers(); layer++)
        kv_bytes += model.plan_layer(layer, params).kv_bytes;
    CHECK(kv_bytes == plan.kv_bytes);
    CHECK(model.longest_context(plan.total_bytes, params) == N_CTX);
    CHECK(model.longest_context(plan.total_bytes - 1, params) < N_CTX && model.longest_context(0) == 0);
    params.max_bytes = plan.total_bytes - 1;
    refused(LG_ERR_OUT_OF_MEMORY, "lg_model_plan", [&] { model.plan(params); });
    refused(LG_ERR_OUT_OF_MEMORY, "lg_session_new", [&] { lg::Session session(model, params); });
}

void text(const lg::Model &model)
{
    // A token is a byte in these models.
    const std::string written = "héllo";
    Tokens tokens = model.tokenize(written, LG_TOKENIZE_ADD_BOS);
    CHECK(tokens.size() == written.size() + 1 && tokens[0] == model.special_token(LG_SPECIAL_BOS));
    CHECK(model.tokenize("").empty() && model.tokenize({}).empty());
    refused(LG_ERR_INVALID, "lg_model_tokenize", [&] { model.tokenize("\xff"); });
    refused(LG_ERR_INVALID, "lg_model_token_bytes", [&] { model.token_bytes(model.n_vocab()); });

    std::string bytes, streamed;
    lg::TextStream stream({"lo", "never"});
    for (const uint32_t token : tokens) {
        bytes += model.is_special(token) ? "" : model.token_bytes(token);
        streamed += stream.push_token(model, token);
    }
    CHECK(bytes == written && streamed == "hél" && stream.stop_index() == 0 && stream.finish().empty());
    lg::TextStream whole;
    CHECK(whole.push("\xc3").empty() && whole.push(std::string_view("\xa9x", 2)) == "éx");
    CHECK(whole.push("\xc3").empty() && whole.finish() == "\xef\xbf\xbd" && whole.stop_index() == LG_INDEX_NONE);
    refused(LG_ERR_INVALID, "lg_text_stream_new", [] { lg::TextStream other({"\xff"}); });
    refused(LG_ERR_INVALID, "lg_text_stream_push_token", [&] { whole.push_token(model, model.n_vocab()); });

    CHECK(model.has_chat_template());
    CHECK(model.apply_chat_template({{"system", "a"}, {"user", written}}) == "system:a;user:héllo;assistant:");
    CHECK(model.apply_chat_template({{"user", {}}}, 0) == "user:;");
    CHECK(model.apply_chat_template({}, 0, "{\"messages\": [{\"role\": \"x\", \"content\": \"y\"}]}") == "x:y;");
    refused(LG_ERR_INVALID, "lg_model_apply_chat_template", [&] { model.apply_chat_template({}, 0, "no JSON"); });
}

void views(const lg::Model &model)
{
    const uint32_t array[] = {1, 2, 3};
    lg::Session session = new_session(model);
    session.prefill(array);
    session.prefill(std::array<uint32_t, 2>{4, 5});
    session.prefill({array, 1});
    CHECK(session.n_tokens() == 6);
    const lg::View<uint32_t> view = array;
    CHECK(view.size() == 3 && view[2] == 3 && !view.empty() && lg::View<uint32_t>().empty());
    CHECK(std::accumulate(view.begin(), view.end(), 0u) == 6 && view.data() == array);
#if __cplusplus >= 202002L
    session.prefill(std::span<const uint32_t>(array));
    session.prefill(std::span<const uint32_t, 2>(array, 2));
    const std::span<const float> logits = session.logits();
    CHECK(session.n_tokens() == 11 && logits.size() == model.n_vocab() && logits.data() == session.logits().data());
#endif
}

Tokens prompt()
{
    Tokens tokens(40);
    std::iota(tokens.begin(), tokens.end(), 3u);
    return tokens;
}

bool same(lg::View<float> a, lg::View<float> b)
{
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

void sessions(const lg::Model &model, const std::string &path)
{
    lg::Session session = new_session(model);
    CHECK(session.n_ctx() == N_CTX && session.n_tokens() == 0);
    refused(LG_ERR_INVALID, "lg_session_logits", [&] { session.logits(); });

    size_t last = 0;
    size_t total = 0;
    session.prefill(prompt(), [&](size_t n_done, size_t n_total) {
        last = n_done, total = n_total;
        return true;
    });
    CHECK(last == 40 && total == 40 && session.n_tokens() == 40 && session.logits().size() == model.n_vocab());
    lg::Session one_by_one = new_session(model);
    for (const uint32_t token : prompt())
        one_by_one.decode(token);
    CHECK(same(session.logits(), one_by_one.logits()));

    CHECK(session.restore_points().back() == 40 && session.restore_bytes() > 0);
    Tokens other = prompt();
    other[35] ^= 1;
    const lg::PromptResult did = session.prompt(other);
    CHECK(did.n_common == 35 && did.n_reused <= 35 && did.n_reused + did.n_computed == 40);
    CHECK(session.tokens() == other);
    refused(LG_ERR_CANCELLED, "lg_session_prompt", [&] { session.prompt(prompt(), [](size_t, size_t) { return false; }); });
    session.prompt(prompt());
    CHECK(same(session.logits(), one_by_one.logits()));

    session.save(path);
    lg::Session loaded(model, path, {}, [](size_t n_done, size_t n_total) { return n_done <= n_total; });
    CHECK(std::remove(path.c_str()) == 0 && loaded.tokens() == session.tokens());
    loaded.prompt(prompt());
    CHECK(same(session.logits(), loaded.logits()));
    refused(LG_ERR_NOT_FOUND, "lg_session_load", [&] { lg::Session(model, path); });
    refused(LG_ERR_NOT_FOUND, "lg_session_save", [&] { session.save("/no/such/folder/session"); });

    lg::Session fork = session.fork();
    CHECK(same(session.logits(), fork.logits()) && fork.tokens() == session.tokens());
    fork.decode(7);
    CHECK(fork.n_tokens() == 41 && session.n_tokens() == 40);
    lg::SessionParams short_context;
    short_context.n_ctx = 39;
    refused(LG_ERR_CONTEXT_FULL, "lg_session_fork", [&] { session.fork(short_context); });

    CHECK(session.rewind(39) == 39);
    refused(LG_ERR_INVALID, "lg_session_rewind", [&] { session.rewind(40); });
    refused(LG_ERR_CONTEXT_FULL, "lg_session_prefill", [&] { session.prefill(Tokens(N_CTX, 1)); });

    // What a callback throws stops the call between two chunks, and so does false.
    const lg::OnProgress throwing = [](size_t, size_t) -> bool { throw Thrown(); };
    lg::Session stopped = new_session(model);
    lg::Cancel cancel;
    CHECK(throws([&] { stopped.prefill(prompt(), throwing); }) && stopped.n_tokens() == 16);
    refused(LG_ERR_CANCELLED, "lg_session_prefill",
            [&] { stopped.prefill(prompt(), [](size_t, size_t) { return false; }, &cancel); });
    CHECK(stopped.n_tokens() == 32);
    cancel.set();
    refused(LG_ERR_CANCELLED, "lg_session_prefill", [&] { stopped.prefill(prompt(), {}, &cancel); });
    refused(LG_ERR_CANCELLED, "lg_session_decode", [&] { stopped.decode(1, &cancel); });
    cancel.reset();
    stopped.decode(1, &cancel);
    CHECK(throws([&] { stopped.prefill(Tokens{1}, throwing); }) && stopped.n_tokens() == 34);
}

void rows(const lg::Model &model)
{
    lg::Session session = new_session(model), other = new_session(model);
    const std::vector<size_t> wanted = {0, 17, 39};
    std::vector<float> logits, hidden;
    size_t last = 0;
    session.prefill_rows(prompt(), wanted, &logits, &hidden, [&](size_t n_done, size_t) { return (last = n_done) > 0; });
    CHECK(last == 40 && logits.size() == 3 * model.n_vocab() && hidden.size() == 3 * model.d_model());
    for (size_t i = 0, row = 0; i < 40; i++) {
        other.decode(prompt()[i]);
        if (i != wanted[row])
            continue;
        CHECK(same(other.logits(), {&logits[row * model.n_vocab()], model.n_vocab()}));
        CHECK(same(other.hidden(), {&hidden[row * model.d_model()], model.d_model()}));
        row++;
    }
    CHECK(same(session.logits(), other.logits()));
    session.prefill_rows(Tokens{1}, std::vector<size_t>{0}, nullptr, &hidden);
    refused(LG_ERR_INVALID, "lg_session_prefill_rows", [&] { session.prefill_rows(Tokens{1}, wanted, &logits, nullptr); });
    CHECK(throws([&] { session.prefill_rows(prompt(), wanted, nullptr, nullptr, [](size_t, size_t) -> bool { throw Thrown(); }); }));
    CHECK(session.n_tokens() == 41 + 16);
}

void state(const lg::Model &model)
{
    lg::Session a = new_session(model), b = new_session(model), alone = new_session(model);
    a.prefill(prompt());
    b.prefill(Tokens{5, 6});
    alone.prefill(prompt());
    alone.decode(7);
    lg::Session::step_batch({{a, Tokens{7}}, {b, Tokens{8, 9, 10}}});
    CHECK(same(a.logits(), alone.logits()) && b.tokens() == (Tokens{5, 6, 8, 9, 10}) && a.tokens().size() == 41);
    refused(LG_ERR_INVALID, "lg_session_step_batch", [&] { lg::Session::step_batch({{a, Tokens{7}}, {a, Tokens{8}}}); });
    refused(LG_ERR_INVALID, "lg_session_step_batch", [&] { lg::Session::step_batch({{a, Tokens{7}}, {b, Tokens{}}}); });
    lg::Cancel cancel;
    cancel.set();
    refused(LG_ERR_CANCELLED, "lg_session_step_batch",
            [&] { lg::Session::step_batch({{a, Tokens{7}}, {b, Tokens{8}}}, &cancel); });

    // The definition of log-probabilities.
    const lg::View<float> logits = a.logits();
    double sum = 0;
    for (const float logit : logits)
        sum += std::exp(static_cast<double>(logit));
    const auto top = a.top_logprobs(5);
    CHECK(top.size() == 5 && logits[top[0].token] == *std::max_element(logits.begin(), logits.end()));
    for (const lg_token_logprob &token : top)
        CHECK(std::abs(token.logprob - (logits[token.token] - std::log(sum))) < 1e-4 &&
              a.logprob(token.token) == token.logprob);
    refused(LG_ERR_INVALID, "lg_session_logprob", [&] { a.logprob(model.n_vocab()); });
    refused(LG_ERR_INVALID, "lg_session_top_logprobs", [&] { a.top_logprobs(10000); });

    lg::SessionParams params;
    params.n_ctx = N_CTX;
    params.chunk_tokens = 16;
    CHECK(a.n_bytes() == model.plan(params).total_bytes && a.kv_bytes() == model.plan(params).kv_bytes);
    const lg::Counters counters = a.counters();
    CHECK(counters.n_prompt_tokens == 40 && counters.n_generated_tokens == 1 && counters.prompt_ms > 0);
    a.reset();
    CHECK(a.n_tokens() == 0 && a.tokens().empty() && a.counters().n_prompt_tokens == 0);
    refused(LG_ERR_INVALID, "lg_session_hidden", [&] { a.hidden(); });
}

void samplers(const lg::Model &model)
{
    lg::Session session = new_session(model);
    session.prefill(prompt());
    const lg::View<float> logits = session.logits();
    const auto best = static_cast<uint32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());

    lg::Sampler greedy;
    CHECK(greedy.sample(session) == best && greedy.choices().size() == 1 && greedy.choices()[0].token == best);
    greedy.set_bias(std::array<lg_logit_bias, 1>{{{best, -INFINITY}}});
    CHECK(greedy.sample(session) != best);
    greedy.set_bias({});
    greedy.set_dry_breakers(Tokens{best});
    CHECK(greedy.sample(session) == best);
    Tokens mask(3);
    mask[2] = 1u << 5;
    CHECK(greedy.sample_masked(session, mask) == 69);
    refused(LG_ERR_INVALID, "lg_sampler_sample_masked", [&] { greedy.sample_masked(session, {}); });

    lg::SamplerParams params;
    params.temperature = 2.0f;
    params.top_k = 50;
    params.seed = 7;
    lg::Sampler sampler(params);
    Tokens first(10), again(10);
    const auto choose = [&] { return sampler.sample(session); };
    std::generate(first.begin(), first.end(), choose);
    CHECK(sampler.choices().size() == 50);
    sampler.reset();
    std::generate(again.begin(), again.end(), choose);
    CHECK(first == again && first != Tokens(10, first[0]));
    params.top_p = 2.0f;
    refused(LG_ERR_INVALID, "lg_sampler_new", [&] { lg::Sampler other(params); });
    refused(LG_ERR_INVALID, "lg_sampler_set_bias", [&] {
        sampler.set_bias(std::array<lg_logit_bias, 1>{{{1, INFINITY}}});
    });
}

void answers(const lg::Model &model)
{
    lg::Sampler sampler;
    lg::GenerateParams params;
    params.max_tokens = 12;
    params.ignore_end = 1;
    Tokens told;
    std::string text;
    params.on_text = [&](uint32_t token, std::string_view part) {
        text += part;
        if (token != LG_TOKEN_NONE)
            told.push_back(token);
        return true;
    };
    size_t n_done = 0;
    params.on_progress = [&](size_t n, size_t) { return n_done = n, true; };
    lg::Session session = new_session(model);
    const lg::GenerateResult result = session.generate(sampler, prompt(), params);
    CHECK(result.n_tokens == 12 && result.reason == LG_STOP_LENGTH && told.size() == 12 && !text.empty());
    CHECK(result.pending_token == told.back() && result.stop_index == LG_INDEX_NONE && n_done == 40);
    CHECK(result.end_token == LG_TOKEN_NONE);

    lg::Session by_hand = new_session(model);
    by_hand.prefill(prompt());
    for (const uint32_t token : told) {
        CHECK(sampler.sample(by_hand) == token);
        by_hand.decode(token);
    }

    // Its own end as a stop string.
    params.stops = {"\x01never\x01", text.substr(text.size() - 1)};
    const std::string whole = std::exchange(text, "");
    CHECK(new_session(model).generate(sampler, prompt(), params).stop_index == 1);
    CHECK(text == whole.substr(0, whole.find(whole.back())));
    params.stops.clear();

    size_t n_told = 0;
    params.on_text = [&](uint32_t, std::string_view) { return ++n_told < 3; };
    CHECK(new_session(model).generate(sampler, prompt(), params).reason == LG_STOP_CALLBACK && n_told == 3);
    lg::Session stopped = new_session(model);
    n_told = 0;
    params.on_text = [&](uint32_t, std::string_view) -> bool { n_told++; throw Thrown(); };
    CHECK(throws([&] { stopped.generate(sampler, prompt(), params); }) && n_told == 1);
    params.on_text = nullptr;
    CHECK(stopped.n_tokens() == 40 && stopped.generate(sampler, {}, params).n_tokens == 12);

    lg::Cancel cancel;
    params.cancel = &cancel;
    n_told = 0;
    params.on_text = [&](uint32_t token, std::string_view) {
        n_told += token != LG_TOKEN_NONE;
        if (n_told == 3)
            cancel.set();
        return true;
    };
    const lg::GenerateResult cancelled = new_session(model).generate(sampler, prompt(), params);
    CHECK(cancelled.reason == LG_STOP_CANCELLED && cancelled.n_tokens == 3 && cancelled.pending_token == told[2]);
    refused(LG_ERR_CANCELLED, "lg_session_generate", [&] { new_session(model).generate(sampler, prompt(), params); });
    cancel.reset();
    lg::Session unread = new_session(model);
    params.on_progress = [](size_t, size_t) { return false; };
    refused(LG_ERR_CANCELLED, "lg_session_generate", [&] { unread.generate(sampler, prompt(), params); });
    CHECK(unread.n_tokens() == 16);
    params.on_progress = [](size_t, size_t) -> bool { throw Thrown(); };
    CHECK(throws([&] { unread.generate(sampler, prompt(), params); }) && unread.n_tokens() == 32);
}

} // namespace

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    lg::ModelParams params;
    params.device = LG_DEVICE_CPU;
    params.n_threads = 2;
    const lg::Model model(argv[1], params);
    versions();
    errors_are_exceptions(argv[2]);
    opening(argv[1]);
    handles(model);
    facts(model);
    metadata(model);
    memory(model);
    text(model);
    views(model);
    sessions(model, std::string(argv[1]) + ".session");
    rows(model);
    state(model);
    samplers(model);
    answers(model);
    CHECK(error_of_another_unit(model) == "lg_model_token_bytes");
    return 0;
}
