#include "server.hpp"

#include "build-info.hpp"
#include "json.hpp"
#include "speech.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

constexpr const char * JSON = "application/json; charset=utf-8";
// Without a limit a model stops by itself somewhere.
constexpr int USUAL_ANSWER = 32;

void fail(Connection & connection, int status, const char * type, const char * message) {
    const Object error = Object().number("code", status).text("message", message).text("type", type);
    connection.answer(status, JSON, Object().json("error", error).str());
}

std::string choice(const char * finish, const char * what, const Object & content) {
    return array_of(Object().json("finish_reason", finish).number("index", 0).json(what, content));
}

} // namespace

void Server::serve(int socket) {
    Connection connection(socket);
    Request request;
    if (!connection.read(request)) return;
    slots_.begin_request();
    route(connection, request);
    slots_.end_request();
}

void Server::route(Connection & connection, const Request & request) {
    const std::string route = request.method + ' ' + request.path;
    if (!may_ask(request)) {
        const Object error =
            Object().text("message", "Invalid API Key").text("type", "authentication_error").number("code", 401);
        connection.answer(401, JSON, Object().json("error", error).str());
    } else if (route == "GET /health") {
        connection.answer(200, JSON, slots_.health());
    } else if (route == "GET /version") {
        connection.answer(200, JSON, R"({"version":4,"features":{"sql":false,"zstd_compression":false}})");
    } else if (route == "GET /v1/models") {
        const Object model = Object().text("id", arguments_.alias).text("object", "model");
        connection.answer(200, JSON, Object().text("object", "list").json("data", array_of(model)).str());
    } else if (route == "GET /metrics" && arguments_.metrics) {
        connection.answer(200, "text/plain; version=0.0.4", slots_.metrics());
    } else if (route == "GET /metrics") {
        fail(connection, 501, "not_supported_error", "This server does not support metrics endpoint.");
    } else if (route == "GET /slots" && arguments_.slots) {
        connection.answer(200, JSON, slots_.list());
    } else if (route == "GET /slots") {
        fail(connection, 501, "not_supported_error", "This server does not support slots endpoint.");
    } else if (route == "POST /completion") {
        complete(connection, request, false);
    } else if (route == "POST /v1/chat/completions") {
        complete(connection, request, true);
    } else {
        fail(connection, 404, "not_found_error", "File Not Found");
    }
}

bool Server::may_ask(const Request & request) const {
    const auto & keys = arguments_.api_keys;
    if (keys.empty() || request.path == "/health" || request.path == "/v1/models") return true;
    const auto given = request.headers.find("authorization");
    if (given == request.headers.end() || given->second.rfind("Bearer ", 0) != 0) return false;
    return std::find(keys.begin(), keys.end(), given->second.substr(std::strlen("Bearer "))) != keys.end();
}

void Server::complete(Connection & connection, const Request & request, bool is_chat) {
    if (FAULT == "no-answer") return fail(connection, 500, "server_error", "stand-in: this build never answers");
    Task task;
    task.is_chat = is_chat;
    try {
        auto asked = members(request.body);
        const char * limit = is_chat && asked.count("max_tokens") ? "max_tokens" : "n_predict";
        if (asked.count(limit)) task.limit = std::atoi(asked[limit].c_str());
        task.is_stream = asked["stream"] == "true";
        task.model = asked["model"];
        task.prompt = asked[is_chat ? "messages" : "prompt"];
        if (task.prompt.empty()) return fail(connection, 400, "invalid_request_error", "there is no prompt");
        task.tokens = count_tokens(task.prompt);
    } catch (const std::invalid_argument & error) {
        return fail(connection, 500, "server_error", error.what());
    }
    if (task.model.empty()) task.model = quoted(arguments_.model.substr(arguments_.model.rfind('/') + 1));
    answer(connection, task);
}

void Server::answer(Connection & connection, const Task & task) {
    const int slot = slots_.take();
    const std::string id = "chatcmpl-" + std::to_string(++chats_);
    // What all answers and parts of answers to a chat have in common.
    const auto of_chat = [&](const char * kind, const std::string & choices) {
        return Object()
            .json("choices", choices)
            .number("created", static_cast<int>(std::time(nullptr)))
            .json("model", task.model)
            .text("object", kind)
            .text("id", id);
    };
    const auto chunk = [&](const char * finish, const Object & delta) {
        return of_chat("chat.completion.chunk", choice(finish, "delta", delta));
    };

    if (task.is_stream) connection.begin_events();
    if (task.is_stream && task.is_chat) {
        connection.send_event(chunk("null", Object().text("role", "assistant").json("content", "null")).str());
    }
    const bool is_limited = task.limit >= 0;
    std::string text;
    const auto say = [&](const std::string & token) {
        text += token;
        Object part = Object().text("content", token);
        if (task.is_chat) part = chunk("null", part);
        if (!task.is_chat) part.flag("stop", false).number("id_slot", slot).flag("multimodal", false);
        if (task.is_stream) connection.send_event(part.str());
        return connection.is_open();
    };
    const int limit = std::min(is_limited ? task.limit : USUAL_ANSWER, context_);
    const Timings timings = speak(task.prompt, task.tokens, limit, say);
    slots_.give_back(slot, timings);

    Object last;
    if (!task.is_chat) {
        last.text("content", task.is_stream ? "" : text)
            .text("generated_text", text)
            .number("id_slot", slot)
            .flag("stop", true)
            .text("model", arguments_.alias)
            .number("tokens_predicted", timings.predicted_n)
            .number("tokens_evaluated", timings.prompt_n)
            .json("prompt", task.prompt)
            .flag("truncated", false)
            .flag("stopped_eos", !is_limited)
            .flag("stopped_word", false)
            .flag("stopped_limit", is_limited)
            .text("stopping_word", "")
            .number("tokens_cached", timings.prompt_n + timings.predicted_n);
    } else if (task.is_stream) {
        last = chunk("\"stop\"", Object());
    } else {
        const Object message = Object().text("role", "assistant").text("content", text);
        last = of_chat("chat.completion", choice("\"stop\"", "message", message));
        last.json("usage", Object()
                               .number("completion_tokens", timings.predicted_n)
                               .number("prompt_tokens", timings.prompt_n)
                               .number("total_tokens", timings.prompt_n + timings.predicted_n));
    }
    last.json("timings", timings.to_json(context_));

    if (!task.is_stream) return connection.answer(200, JSON, last.str());
    connection.send_event(last.str());
    if (task.is_chat) connection.send_event("[DONE]");
    connection.end_events();
}
