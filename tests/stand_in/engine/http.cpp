#include "http.hpp"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sstream>
#include <sys/socket.h>
#include <unistd.h>

namespace {

constexpr std::size_t LONGEST_BODY = 64 << 20;

const char * reason(int status) {
    switch (status) {
        case 200: return "OK";
        case 400: return "Bad Request";
        case 401: return "Unauthorized";
        case 404: return "Not Found";
        case 501: return "Not Implemented";
        default: return "Internal Server Error";
    }
}

std::string head(int status, std::string_view type) {
    std::ostringstream text;
    text << "HTTP/1.1 " << status << ' ' << reason(status) << "\r\nServer: stand-in\r\nConnection: close\r\n"
         << "Content-Type: " << type << "\r\n";
    return text.str();
}

// `POST /completion HTTP/1.1` and the lines below it.
bool parse_head(const std::string & text, Request & request) {
    std::istringstream lines(text);
    std::string version;
    if (!(lines >> request.method >> request.path >> version) || version.rfind("HTTP/1.", 0) != 0) return false;
    request.path = request.path.substr(0, request.path.find('?'));
    std::string line;
    std::getline(lines, line);
    while (std::getline(lines, line)) {
        const auto colon = line.find(':');
        const auto value = line.find_first_not_of(' ', colon == line.npos ? colon : colon + 1);
        if (value == line.npos) continue;
        std::string name = line.substr(0, colon);
        std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
        request.headers[name] = line.substr(value, line.find_last_not_of(" \r") + 1 - value);
    }
    return true;
}

} // namespace

Connection::~Connection() { close(socket_); }

bool Connection::receive(std::string & into) {
    char buffer[1 << 14];
    const auto got = recv(socket_, buffer, sizeof buffer, 0);
    if (got > 0) into.append(buffer, static_cast<std::size_t>(got));
    return got > 0;
}

bool Connection::read(Request & request) {
    std::string text;
    while (text.find("\r\n\r\n") == text.npos) {
        if (text.size() > 1 << 16 || !receive(text)) return false;
    }
    const auto end = text.find("\r\n\r\n") + 4;
    if (!parse_head(text.substr(0, end), request)) return false;
    const std::size_t length = std::strtoull(request.headers["content-length"].c_str(), nullptr, 10);
    if (length > LONGEST_BODY) return false;
    // curl asks before it sends a long body.
    if (request.headers["expect"] == "100-continue") send("HTTP/1.1 100 Continue\r\n\r\n");
    request.body = text.substr(end);
    while (request.body.size() < length) {
        if (!receive(request.body)) return false;
    }
    request.body.resize(length);
    return true;
}

bool Connection::is_open() const {
    char byte;
    const auto got = recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got > 0 || (got < 0 && errno == EAGAIN);
}

void Connection::send(std::string_view text) {
    while (!text.empty()) {
        // No signal if the client has gone; `is_open` tells.
        const auto sent = ::send(socket_, text.data(), text.size(), MSG_NOSIGNAL);
        if (sent <= 0) return;
        text.remove_prefix(static_cast<std::size_t>(sent));
    }
}

void Connection::answer(int status, std::string_view type, std::string_view body) {
    send(head(status, type) + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + std::string(body));
}

void Connection::begin_events() { send(head(200, "text/event-stream") + "Transfer-Encoding: chunked\r\n\r\n"); }

void Connection::send_event(std::string_view json) {
    const std::string event = "data: " + std::string(json) + "\n\n";
    char size[24];
    std::snprintf(size, sizeof size, "%zx\r\n", event.size());
    send(size + event + "\r\n");
}

void Connection::end_events() { send("0\r\n\r\n"); }

int listen_on(const std::string & host, int & port) {
    addrinfo wish{}, * found = nullptr;
    wish.ai_socktype = SOCK_STREAM;
    wish.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wish, &found) != 0) return -1;
    int listener = -1;
    for (const addrinfo * at = found; at && listener < 0; at = at->ai_next) {
        listener = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const int yes = 1;
        // As the real engine has it: a second server of the same user gets the same port, and half of the requests.
        setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes);
        if (listener >= 0 && (bind(listener, at->ai_addr, at->ai_addrlen) != 0 || listen(listener, 128) != 0)) {
            close(listener);
            listener = -1;
        }
    }
    freeaddrinfo(found);
    sockaddr_storage bound{};
    socklen_t size = sizeof bound;
    if (listener >= 0 && getsockname(listener, reinterpret_cast<sockaddr *>(&bound), &size) == 0) {
        // The port has the same place in both families' addresses.
        port = ntohs(reinterpret_cast<const sockaddr_in &>(bound).sin_port);
    }
    return listener;
}

int take_connection(int listener) {
    int taken = -1;
    while (taken < 0) taken = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    const int yes = 1; // a token goes out when it is there
    setsockopt(taken, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return taken;
}
