// Stand-in: as much of JSON as requests and answers need.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <string_view>

// The members of an object by name, each value as it is written. Throws std::invalid_argument if it is none.
std::map<std::string, std::string> members(std::string_view object);

// How many values an array has, -1 if it is none.
int count_values(std::string_view array);

std::string quoted(std::string_view text);

// An object that is written member by member.
class Object {
  public:
    Object & text(std::string_view name, std::string_view value) { return json(name, quoted(value)); }
    Object & number(std::string_view name, int value) { return json(name, std::to_string(value)); }
    Object & number(std::string_view name, double value) { return json(name, std::to_string(value)); }
    Object & flag(std::string_view name, bool value) { return json(name, value ? "true" : "false"); }
    // A value that is JSON already.
    Object & json(std::string_view name, std::string_view value);
    Object & json(std::string_view name, const Object & value) { return json(name, value.str()); }

    std::string str() const { return '{' + members_ + '}'; }

  private:
    std::string members_;
};

std::string array_of(const Object & only);
