#include "json.hpp"

#include <algorithm>
#include <cstdio>

namespace {

class Scanner {
  public:
    explicit Scanner(std::string_view text) : text_(text) {}

    // The next character that is no blank.
    char peek() {
        at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size());
        return at_ < text_.size() ? text_[at_] : '\0';
    }

    bool take(char wanted) {
        if (peek() != wanted) return false;
        ++at_;
        return true;
    }

    void expect(char wanted) {
        if (!take(wanted)) throw std::invalid_argument("parse error at column " + std::to_string(at_ + 1));
    }

    // A whole value, as it is written; what stands in it is not looked at closely.
    std::string_view value() {
        const char first = peek();
        const auto from = at_;
        if (first == '"') {
            skip_string();
        } else if (first == '{' || first == '[') {
            skip_nested();
        } else {
            at_ = std::min(text_.find_first_of(",]} \t\r\n", at_), text_.size());
        }
        if (at_ == from) expect('"');
        return text_.substr(from, at_ - from);
    }

  private:
    void skip_string() {
        for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
            if (text_[at_] == '\\') ++at_;
        }
        expect('"');
    }

    void skip_nested() {
        int depth = 0;
        do {
            const char next = peek();
            if (next == '\0') expect('}');
            if (next == '"') {
                skip_string();
                continue;
            }
            depth += (next == '{' || next == '[') - (next == '}' || next == ']');
            ++at_;
        } while (depth > 0);
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

} // namespace

std::map<std::string, std::string> members(std::string_view object) {
    std::map<std::string, std::string> found;
    Scanner scanner(object);
    scanner.expect('{');
    if (scanner.take('}')) return found;
    do {
        if (scanner.peek() != '"') scanner.expect('"');
        const std::string_view name = scanner.value();
        scanner.expect(':');
        found[std::string(name.substr(1, name.size() - 2))] = scanner.value();
    } while (scanner.take(','));
    scanner.expect('}');
    return found;
}

int count_values(std::string_view array) {
    Scanner scanner(array);
    if (!scanner.take('[')) return -1;
    if (scanner.take(']')) return 0;
    int values = 0;
    do {
        scanner.value();
        ++values;
    } while (scanner.take(','));
    scanner.expect(']');
    return values;
}

std::string quoted(std::string_view text) {
    std::string json = "\"";
    for (const char c : text) {
        char escaped[8];
        if (c == '"' || c == '\\') {
            json += {'\\', c};
        } else if (static_cast<unsigned char>(c) < ' ') {
            std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
            json += escaped;
        } else {
            json += c;
        }
    }
    return json + '"';
}

Object & Object::json(std::string_view name, std::string_view value) {
    if (!members_.empty()) members_ += ',';
    members_ += quoted(name) + ':' + std::string(value);
    return *this;
}

std::string array_of(const Object & only) { return '[' + only.str() + ']'; }
