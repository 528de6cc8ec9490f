// Stand-in: as much of HTTP/1.1 as its clients need, one request for each connection.
#pragma once

#include <map>
#include <string>
#include <string_view>

struct Request {
    std::string method;
    std::string path;
    std::map<std::string, std::string> headers; // names in small letters
    std::string body;
};

class Connection {
  public:
    explicit Connection(int socket) : socket_(socket) {}
    Connection(const Connection &) = delete;
    ~Connection();

    // False if what comes is no request, or ends too early.
    bool read(Request & request);
    // Whether the client still waits for an answer.
    bool is_open() const;

    void answer(int status, std::string_view type, std::string_view body);
    // A long answer in pieces. Its end is told apart from the end of a server that dies.
    void begin_events();
    void send_event(std::string_view json);
    void end_events();

  private:
    bool receive(std::string & into);
    void send(std::string_view text);

    int socket_;
};

// A socket on which connections wait until somebody takes them, -1 if the address is taken; `port` becomes the real
// one where it was 0.
int listen_on(const std::string & host, int & port);

int take_connection(int listener);
