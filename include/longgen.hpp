// longgen.hpp: longgen.h for C++17 and later.
//
// What the functions do is written in longgen.h; here stands how they are called in C++:
//
// - Model, Session, Sampler, TextStream and Cancel own what longgen.h calls their handle. They move and do not copy;
//   get() gives the handle.
// - A method has the name of its function without the prefix. Outputs are what it returns: a std::vector or a std::string
//   if they are copied, a View or a std::string_view if they point into the object.
// - A call that fails throws Error, which has the lg_status and the texts of lg_error.
// - Arrays come in as a View: any std::vector, std::array, C array or std::span converts to one, and a View to a
//   std::span.
// - Structs of parameters and results are those of longgen.h with struct_size set.
// - Callbacks are callables and may throw. The exception stops the call, at its next report at the latest, and leaves it when
//   it has returned.
//
// Threads: as longgen.h says of the handles. Everything is inline; there is nothing to link but liblonggen.so.

#ifndef LONGGEN_HPP
#define LONGGEN_HPP

#include <longgen.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace longgen {

// What a failed call has to say.
class Error : public std::exception {
public:
    explicit Error(const lg_error &error) noexcept : error_(error) {}

    lg_status code() const noexcept { return static_cast<lg_status>(error_.code); }
    const char *what() const noexcept override { return error_.message; }
    const char *where() const noexcept { return error_.where; }

private:
    lg_error error_;
};

// Some values that lie one behind the other and belong to somebody else.
template <class T> class View {
    // What has values of this type for std::data.
    template <class Array>
    using IfArray = std::enable_if_t<std::is_same_v<decltype(std::data(std::declval<const Array &>())), const T *> ||
                                     std::is_same_v<decltype(std::data(std::declval<const Array &>())), T *>>;

public:
    View() noexcept = default;
    View(const T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <class Array, class = IfArray<Array>>
    View(const Array &array) noexcept : data_(std::data(array)), size_(std::size(array)) {}

    const T *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    const T *begin() const noexcept { return data_; }
    const T *end() const noexcept { return data_ + size_; }
    const T &operator[](std::size_t i) const noexcept { return data_[i]; }

private:
    const T *data_ = nullptr;
    std::size_t size_ = 0;
};

// A struct of longgen.h with its struct_size; everything else is zero.
template <class T> struct Sized : T {
    Sized() noexcept : T{} { this->struct_size = sizeof(T); }
};

using LayerAttention = Sized<lg_layer_attention>;
using SessionParams = Sized<lg_session_params>;
using MemoryPlan = Sized<lg_memory_plan>;
using LayerPlan = Sized<lg_layer_plan>;
using Counters = Sized<lg_counters>;
using SamplerParams = Sized<lg_sampler_params>;
using PromptResult = Sized<lg_prompt_result>;
using GenerateResult = Sized<lg_generate_result>;

// lg_on_progress, lg_on_log and lg_on_text.
using OnProgress = std::function<bool(std::size_t n_done, std::size_t n_total)>;
using OnLog = std::function<void(std::uint32_t level, std::string_view message)>;
using OnText = std::function<bool(std::uint32_t token, std::string_view text)>;

// Lives in longgen.hpp only.
namespace detail {

template <auto free> struct Free {
    template <class T> void operator()(T *handle) const noexcept { free(handle); }
};

inline lg_error no_error() noexcept
{
    lg_error error{};
    error.struct_size = sizeof error;
    return error;
}

// Calls a function that takes an lg_error last.
template <class Function, class... Arguments> void call(Function function, Arguments... arguments)
{
    lg_error error = no_error();
    if (function(arguments..., &error) != LG_OK)
        throw Error(error);
}

// What a function gives that takes a buffer, its room, and where to write how much there is.
template <class Buffer, class Function, class... Arguments> Buffer filled(Function function, Arguments... arguments)
{
    Buffer buffer;
    std::size_t n = 0;
    lg_error error = no_error();
    lg_status status;
    do {
        buffer.resize(n);
        // Also where it is too small, which what depends on the clock may have become meanwhile, `n` says how much is needed.
        status = function(arguments..., buffer.data(), n, &n, &error);
    } while (buffer.size() < n);
    if (status != LG_OK)
        throw Error(error);
    buffer.resize(n);
    return buffer;
}

inline const std::uint8_t *bytes(std::string_view text) noexcept
{
    return reinterpret_cast<const std::uint8_t *>(text.data());
}

inline std::vector<const char *> pointers(const std::vector<std::string> &texts)
{
    std::vector<const char *> pointers;
    for (const std::string &text : texts)
        pointers.push_back(text.c_str());
    return pointers;
}

} // namespace detail

inline std::uint32_t version() noexcept { return lg_version(); }
inline const char *version_str() noexcept { return lg_version_str(); }
inline const char *build_info() noexcept { return lg_build_info(); }
inline std::uint32_t abi_version() noexcept { return lg_abi_version(); }
inline const char *status_str(std::uint32_t status) noexcept { return lg_status_str(status); }

// lg_cancel.
class Cancel {
public:
    Cancel()
    {
        lg_cancel *cancel = nullptr;
        detail::call(lg_cancel_new, &cancel);
        cancel_.reset(cancel);
    }

    void set() const noexcept { lg_cancel_set(get()); }
    void reset() const noexcept { lg_cancel_reset(get()); }
    lg_cancel *get() const noexcept { return cancel_.get(); }

private:
    std::unique_ptr<lg_cancel, detail::Free<lg_cancel_free>> cancel_;
};

namespace detail {

inline lg_cancel *handle(const Cancel *cancel) noexcept { return cancel == nullptr ? nullptr : cancel->get(); }

// The callables of a call, and what one of them throws, which must not pass through C.
class Told {
public:
    explicit Told(const OnProgress &on_progress, const OnLog *on_log = nullptr, const OnText *on_text = nullptr) noexcept
        : on_progress_(on_progress), on_log_(on_log), on_text_(on_text)
    {
    }

    // Calls the function, and leaves with what a callable threw or the function has to say.
    template <class Function> void call(Function function)
    {
        lg_error error = no_error();
        const lg_status status = function(&error);
        if (thrown_)
            std::rethrow_exception(thrown_);
        if (status != LG_OK)
            throw Error(error);
    }

    // Also where nobody wants to know: it stops a call whose log has thrown.
    static bool on_progress(void *user, std::size_t n_done, std::size_t n_total)
    {
        Told &told = *static_cast<Told *>(user);
        return told.goes_on([&] { return !told.on_progress_ || told.on_progress_(n_done, n_total); });
    }

    lg_on_log on_log() const noexcept
    {
        const lg_on_log tell = [](void *user, std::uint32_t level, const char *message) {
            Told &told = *static_cast<Told *>(user);
            told.goes_on([&] { return (*told.on_log_)(level, message), true; });
        };
        return *on_log_ ? tell : nullptr;
    }

    lg_on_text on_text() const noexcept
    {
        const lg_on_text tell = [](void *user, std::uint32_t token, const char *text, std::size_t n_bytes) {
            Told &told = *static_cast<Told *>(user);
            return told.goes_on([&] { return (*told.on_text_)(token, {text, n_bytes}); });
        };
        return *on_text_ ? tell : nullptr;
    }

private:
    // Not behind an exception, now or before.
    template <class Callable> bool goes_on(Callable callable) noexcept
    {
        if (thrown_)
            return false;
        try {
            return callable();
        } catch (...) {
            thrown_ = std::current_exception();
            return false;
        }
    }

    const OnProgress &on_progress_;
    const OnLog *on_log_;
    const OnText *on_text_;
    std::exception_ptr thrown_;
};

} // namespace detail

// lg_model_params with callables.
struct ModelParams : Sized<lg_model_params> {
    OnProgress on_progress;
    OnLog on_log;
    const Cancel *cancel = nullptr;
};

// lg_generate_params with strings and callables.
struct GenerateParams : Sized<lg_generate_params> {
    std::vector<std::string> stops;
    OnProgress on_progress;
    OnText on_text;
    const Cancel *cancel = nullptr;
};

// lg_message.
struct Message {
    std::string_view role;
    std::string_view content;
};

// What lg_model_metadata_info says.
struct MetadataInfo {
    std::uint32_t type;
    std::size_t n_elements;
    bool is_array;
};

// lg_model.
class Model {
public:
    explicit Model(const std::string &path, const ModelParams &params = {})
    {
        detail::Told told(params.on_progress, &params.on_log);
        lg_model_params given = params;
        given.on_progress = told.on_progress;
        given.on_log = told.on_log();
        given.user = &told;
        given.cancel = detail::handle(params.cancel);
        told.call([&](lg_error *error) {
            lg_model *model = nullptr;
            const lg_status status = lg_model_open(path.c_str(), &given, &model, error);
            model_.reset(model);
            return status;
        });
    }

    std::string_view architecture() const noexcept { return text(lg_model_architecture(get())); }
    std::string_view device() const noexcept { return text(lg_model_device(get())); }
    std::uint32_t n_vocab() const noexcept { return lg_model_n_vocab(get()); }
    std::uint32_t n_ctx_train() const noexcept { return lg_model_n_ctx_train(get()); }
    std::uint32_t n_layers() const noexcept { return lg_model_n_layers(get()); }
    std::uint32_t n_heads() const noexcept { return lg_model_n_heads(get()); }
    std::uint32_t n_kv_heads() const noexcept { return lg_model_n_kv_heads(get()); }
    std::uint32_t head_dim() const noexcept { return lg_model_head_dim(get()); }
    std::uint32_t d_model() const noexcept { return lg_model_d_model(get()); }
    std::uint64_t n_params() const noexcept { return lg_model_n_params(get()); }
    std::uint64_t n_bytes() const noexcept { return lg_model_n_bytes(get()); }

    std::uint32_t special_token(std::uint32_t which) const noexcept { return lg_model_special_token(get(), which); }
    bool is_end_of_generation(std::uint32_t token) const noexcept { return lg_model_is_end_of_generation(get(), token); }
    bool is_special(std::uint32_t token) const noexcept { return lg_model_is_special(get(), token); }

    LayerAttention layer_attention(std::uint32_t layer) const
    {
        LayerAttention attention;
        detail::call(lg_model_layer_attention, get(), layer, &attention);
        return attention;
    }

    std::vector<std::uint32_t> layer_phases(std::uint32_t layer) const
    {
        return detail::filled<std::vector<std::uint32_t>>(lg_model_layer_phases, get(), layer);
    }

    std::size_t n_metadata() const noexcept { return lg_model_n_metadata(get()); }

    std::string metadata_key(std::size_t index) const
    {
        std::string key = detail::filled<std::string>(lg_model_metadata_key, get(), index);
        key.pop_back(); // The zero byte.
        return key;
    }

    MetadataInfo metadata_info(const std::string &key) const
    {
        MetadataInfo info{};
        detail::call(lg_model_metadata_info, get(), key.c_str(), &info.type, &info.n_elements, &info.is_array);
        return info;
    }

    std::uint64_t metadata_u64(const std::string &key, std::size_t index = 0) const
    {
        return metadata<std::uint64_t>(lg_model_metadata_u64, key, index);
    }

    std::int64_t metadata_i64(const std::string &key, std::size_t index = 0) const
    {
        return metadata<std::int64_t>(lg_model_metadata_i64, key, index);
    }

    double metadata_f64(const std::string &key, std::size_t index = 0) const
    {
        return metadata<double>(lg_model_metadata_f64, key, index);
    }

    bool metadata_bool(const std::string &key, std::size_t index = 0) const
    {
        return metadata<bool>(lg_model_metadata_bool, key, index);
    }

    std::string metadata_text(const std::string &key, std::size_t index = 0) const
    {
        return detail::filled<std::string>(lg_model_metadata_text, get(), key.c_str(), index);
    }

    MemoryPlan plan(const SessionParams &params = {}) const
    {
        MemoryPlan plan;
        detail::call(lg_model_plan, get(), &params, &plan);
        return plan;
    }

    LayerPlan plan_layer(std::uint32_t layer, const SessionParams &params = {}) const
    {
        LayerPlan plan;
        detail::call(lg_model_plan_layer, get(), &params, layer, &plan);
        return plan;
    }

    std::uint32_t longest_context(std::uint64_t n_bytes, const SessionParams &params = {}) const
    {
        std::uint32_t n_ctx = 0;
        detail::call(lg_model_longest_context, get(), &params, n_bytes, &n_ctx);
        return n_ctx;
    }

    std::vector<std::uint32_t> tokenize(std::string_view text, std::uint32_t flags = 0) const
    {
        return detail::filled<std::vector<std::uint32_t>>(lg_model_tokenize, get(), text.data(), text.size(), flags);
    }

    std::string token_bytes(std::uint32_t token) const
    {
        const auto function = [](const lg_model *model, std::uint32_t id, char *bytes, std::size_t cap, std::size_t *n_bytes,
                                 lg_error *error) {
            return lg_model_token_bytes(model, id, reinterpret_cast<std::uint8_t *>(bytes), cap, n_bytes, error);
        };
        return detail::filled<std::string>(function, get(), token);
    }

    bool has_chat_template() const noexcept { return lg_model_has_chat_template(get()); }

    std::string apply_chat_template(const std::vector<Message> &messages,
                                    std::uint32_t flags = LG_CHAT_ADD_GENERATION_PROMPT,
                                    std::string_view variables = {}) const
    {
        std::vector<lg_message> given;
        for (const Message &message : messages)
            given.push_back({message.role.data(), message.role.size(), message.content.data(), message.content.size()});
        return detail::filled<std::string>(lg_model_apply_chat_template, get(), given.data(), given.size(),
                                           variables.data(), variables.size(), flags);
    }

    lg_model *get() const noexcept { return model_.get(); }

private:
    // What a moved-from model has.
    static std::string_view text(const char *text) noexcept { return text == nullptr ? "" : text; }

    template <class T, class Function> T metadata(Function function, const std::string &key, std::size_t index) const
    {
        T value{};
        detail::call(function, get(), key.c_str(), index, &value);
        return value;
    }

    std::unique_ptr<lg_model, detail::Free<lg_model_free>> model_;
};

// lg_text_stream.
class TextStream {
public:
    explicit TextStream(const std::vector<std::string> &stops = {})
    {
        const std::vector<const char *> given = detail::pointers(stops);
        lg_text_stream *stream = nullptr;
        detail::call(lg_text_stream_new, given.data(), given.size(), &stream);
        stream_.reset(stream);
    }

    std::string_view push(std::string_view bytes)
    {
        return told(lg_text_stream_push, detail::bytes(bytes), bytes.size());
    }

    std::string_view push_token(const Model &model, std::uint32_t token)
    {
        return told(lg_text_stream_push_token, model.get(), token);
    }

    std::string_view finish() { return told(lg_text_stream_finish); }
    std::uint32_t stop_index() const noexcept { return lg_text_stream_stop_index(get()); }
    lg_text_stream *get() const noexcept { return stream_.get(); }

private:
    template <class Function, class... Arguments> std::string_view told(Function function, Arguments... arguments)
    {
        const char *text = nullptr;
        std::size_t n_text = 0;
        detail::call(function, get(), arguments..., &text, &n_text);
        return {text, n_text};
    }

    std::unique_ptr<lg_text_stream, detail::Free<lg_text_stream_free>> stream_;
};

class Sampler;

// lg_session.
class Session {
public:
    explicit Session(const Model &model, const SessionParams &params = {})
        : n_vocab_(model.n_vocab()), d_model_(model.d_model())
    {
        lg_session *session = nullptr;
        detail::call(lg_session_new, model.get(), &params, &session);
        session_.reset(session);
    }

    // What `save` has written.
    Session(const Model &model, const std::string &path, const SessionParams &params = {},
            const OnProgress &on_progress = {}, const Cancel *cancel = nullptr)
        : n_vocab_(model.n_vocab()), d_model_(model.d_model())
    {
        lg_session *session = nullptr;
        detail::Told told(on_progress);
        told.call([&](lg_error *error) {
            return lg_session_load(model.get(), path.c_str(), &params, told.on_progress, &told, detail::handle(cancel),
                                   &session, error);
        });
        session_.reset(session);
    }

    Session fork(const SessionParams &params = {})
    {
        Session fork(n_vocab_, d_model_);
        lg_session *session = nullptr;
        detail::call(lg_session_fork, get(), &params, &session);
        fork.session_.reset(session);
        return fork;
    }

    void save(const std::string &path, const OnProgress &on_progress = {}, const Cancel *cancel = nullptr) const
    {
        detail::Told told(on_progress);
        told.call([&](lg_error *error) {
            return lg_session_save(get(), path.c_str(), told.on_progress, &told, detail::handle(cancel), error);
        });
    }

    void prefill(View<std::uint32_t> tokens, const OnProgress &on_progress = {}, const Cancel *cancel = nullptr)
    {
        detail::Told told(on_progress);
        told.call([&](lg_error *error) {
            return lg_session_prefill(get(), tokens.data(), tokens.size(), told.on_progress, &told, detail::handle(cancel),
                                      error);
        });
    }

    // The session holds `tokens` and nothing else then.
    PromptResult prompt(View<std::uint32_t> tokens, const OnProgress &on_progress = {}, const Cancel *cancel = nullptr)
    {
        PromptResult result;
        detail::Told told(on_progress);
        told.call([&](lg_error *error) {
            return lg_session_prompt(get(), tokens.data(), tokens.size(), told.on_progress, &told, detail::handle(cancel),
                                     &result, error);
        });
        return result;
    }

    // Row after row; NULL spares the work.
    void prefill_rows(View<std::uint32_t> tokens, View<std::size_t> rows, std::vector<float> *logits,
                      std::vector<float> *hidden, const OnProgress &on_progress = {}, const Cancel *cancel = nullptr)
    {
        float *const to_logits = room(logits, rows.size(), n_vocab_), *const to_hidden = room(hidden, rows.size(), d_model_);
        detail::Told told(on_progress);
        told.call([&](lg_error *error) {
            return lg_session_prefill_rows(get(), tokens.data(), tokens.size(), rows.data(), rows.size(), told.on_progress,
                                           &told, detail::handle(cancel), to_logits, to_hidden, error);
        });
    }

    void decode(std::uint32_t token, const Cancel *cancel = nullptr)
    {
        detail::call(lg_session_decode, get(), token, detail::handle(cancel));
    }

    // A session, and its tokens in a batch.
    struct Part {
        Session &session;
        View<std::uint32_t> tokens;
    };

    static void step_batch(const std::vector<Part> &parts, const Cancel *cancel = nullptr)
    {
        std::vector<lg_session *> sessions;
        std::vector<std::uint32_t> tokens;
        std::vector<std::size_t> n_tokens;
        for (const Part &part : parts) {
            sessions.push_back(part.session.get());
            tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
            n_tokens.push_back(part.tokens.size());
        }
        detail::call(lg_session_step_batch, sessions.data(), tokens.data(), n_tokens.data(), parts.size(),
                     detail::handle(cancel));
    }

    View<float> logits() const { return values(lg_session_logits); }
    View<float> hidden() const { return values(lg_session_hidden); }

    std::vector<lg_token_logprob> top_logprobs(std::size_t n) const
    {
        std::vector<lg_token_logprob> top(n);
        detail::call(lg_session_top_logprobs, get(), top.data(), top.size());
        return top;
    }

    float logprob(std::uint32_t token) const
    {
        float logprob = 0;
        detail::call(lg_session_logprob, get(), token, &logprob);
        return logprob;
    }

    std::size_t n_tokens() const noexcept { return lg_session_n_tokens(get()); }
    std::uint32_t n_ctx() const noexcept { return lg_session_n_ctx(get()); }
    std::uint64_t n_bytes() const noexcept { return lg_session_n_bytes(get()); }
    std::uint64_t kv_bytes() const noexcept { return lg_session_kv_bytes(get()); }

    std::vector<std::uint32_t> tokens() const
    {
        return detail::filled<std::vector<std::uint32_t>>(lg_session_tokens, get());
    }

    Counters counters() const
    {
        Counters counters;
        detail::call(lg_session_counters, get(), &counters);
        return counters;
    }

    std::size_t rewind(std::size_t n_tokens)
    {
        std::size_t n_kept = 0;
        detail::call(lg_session_rewind, get(), n_tokens, &n_kept);
        return n_kept;
    }

    std::vector<std::size_t> restore_points() const
    {
        return detail::filled<std::vector<std::size_t>>(lg_session_restore_points, get());
    }

    std::uint64_t restore_bytes() const noexcept { return lg_session_restore_bytes(get()); }

    void reset() { detail::call(lg_session_reset, get()); }

    GenerateResult generate(Sampler &sampler, View<std::uint32_t> tokens, const GenerateParams &params = {});

    lg_session *get() const noexcept { return session_.get(); }

private:
    template <class Function> View<float> values(Function function) const
    {
        const float *values = nullptr;
        std::size_t n = 0;
        detail::call(function, get(), &values, &n);
        return {values, n};
    }

    static float *room(std::vector<float> *values, std::size_t n_rows, std::size_t width)
    {
        if (values == nullptr)
            return nullptr;
        values->resize(n_rows * width);
        return values->data();
    }

    Session(std::uint32_t n_vocab, std::uint32_t d_model) : n_vocab_(n_vocab), d_model_(d_model) {}

    std::unique_ptr<lg_session, detail::Free<lg_session_free>> session_;
    std::uint32_t n_vocab_;
    std::uint32_t d_model_;
};

// lg_sampler.
class Sampler {
public:
    explicit Sampler(const SamplerParams &params = {})
    {
        lg_sampler *sampler = nullptr;
        detail::call(lg_sampler_new, &params, &sampler);
        sampler_.reset(sampler);
    }

    void set_bias(View<lg_logit_bias> biases) { detail::call(lg_sampler_set_bias, get(), biases.data(), biases.size()); }

    void set_dry_breakers(View<std::uint32_t> tokens)
    {
        detail::call(lg_sampler_set_dry_breakers, get(), tokens.data(), tokens.size());
    }

    std::uint32_t sample(const Session &session)
    {
        std::uint32_t token = LG_TOKEN_NONE;
        detail::call(lg_sampler_sample, get(), session.get(), &token);
        return token;
    }

    std::uint32_t sample_masked(const Session &session, View<std::uint32_t> mask)
    {
        std::uint32_t token = LG_TOKEN_NONE;
        detail::call(lg_sampler_sample_masked, get(), session.get(), mask.data(), mask.size(), &token);
        return token;
    }

    std::vector<lg_choice> choices() const
    {
        return detail::filled<std::vector<lg_choice>>(lg_sampler_choices, get());
    }

    void reset() { detail::call(lg_sampler_reset, get()); }
    lg_sampler *get() const noexcept { return sampler_.get(); }

private:
    std::unique_ptr<lg_sampler, detail::Free<lg_sampler_free>> sampler_;
};

inline GenerateResult Session::generate(Sampler &sampler, View<std::uint32_t> tokens, const GenerateParams &params)
{
    detail::Told told(params.on_progress, nullptr, &params.on_text);
    const std::vector<const char *> stops = detail::pointers(params.stops);
    lg_generate_params given = params;
    given.stops = stops.data();
    given.n_stops = stops.size();
    given.on_progress = told.on_progress;
    given.on_text = told.on_text();
    given.user = &told;
    given.cancel = detail::handle(params.cancel);
    GenerateResult result;
    told.call([&](lg_error *error) {
        return lg_session_generate(get(), sampler.get(), tokens.data(), tokens.size(), &given, &result, error);
    });
    return result;
}

} // namespace longgen

#endif // LONGGEN_HPP
